//! How the keys of what is outstanding were made, table by table.

use smallvec::SmallVec;

use crate::delivery::ordering::Keyed;

/// The tables that hold rows of something outstanding, by oid: mostly one.
#[derive(Default)]
pub(super) struct Keying(SmallVec<[Outstanding; 1]>);

struct Outstanding {
    relation: u32,
    /// How the newest is keyed.
    way: u32,
    /// The root table by then.
    root: u32,
    count: u32,
}

impl Keying {
    fn place(&self, relation: u32) -> Result<usize, usize> {
        self.0.binary_search_by_key(&relation, |outstanding| outstanding.relation)
    }

    /// Takes an item that belongs to the root table. When it is keyed in another way than what is outstanding, the root
    /// table of that.
    pub fn arrive(&mut self, keyed: Keyed, root: u32) -> Option<u32> {
        let Keyed { relation, way } = keyed;
        if relation == 0 {
            return None;
        }
        match self.place(relation) {
            Ok(place) => {
                let outstanding = &mut self.0[place];
                let before = (outstanding.way != way).then_some(outstanding.root);
                (outstanding.way, outstanding.root) = (way, root);
                outstanding.count += 1;
                before
            }
            Err(place) => {
                self.0.insert(place, Outstanding { relation, way, root, count: 1 });
                None
            }
        }
    }

    /// Takes an item off.
    pub fn leave(&mut self, keyed: Keyed) {
        let Ok(place) = self.place(keyed.relation) else { return };
        self.0[place].count -= 1;
        if self.0[place].count == 0 {
            self.0.remove(place);
        }
    }

    /// Begins anew with these items, in the order of their arrival.
    pub fn begin_with(&mut self, items: impl Iterator<Item = (Keyed, u32)>) {
        self.0.clear();
        for (keyed, root) in items {
            self.arrive(keyed, root);
        }
    }

    /// Whether nothing is outstanding.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
