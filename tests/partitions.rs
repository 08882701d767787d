//! Partitions are shown as the tables that their subscriptions name.

use harness::{Event, Stage, what};

#[test]
fn a_partitioned_table_stands_for_its_partitions() {
    let stage = Stage::set();
    stage.sql(
        "CREATE TABLE sales (id int, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
         CREATE TABLE sales_2026 PARTITION OF sales FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')
           PARTITION BY LIST (id);
         CREATE TABLE sales_2026_rest PARTITION OF sales_2026 DEFAULT;
         CREATE TABLE sales_2027 PARTITION OF sales FOR VALUES FROM ('2027-01-01') TO ('2028-01-01')",
    );
    let pure = |name: &str, tables: &str| {
        stage.subscribe(&stage.receiver, name, &format!("tables => '{{{tables}}}'"))
    };
    pure("by_root", "public.sales");
    pure("by_leaf", "public.sales_2027");
    pure("by_middle", "public.sales_2026");
    stage.each(&[
        "INSERT INTO sales VALUES (1, '2026-05-05'), (2, '2027-05-05')",
        "UPDATE sales SET day = '2027-06-06' WHERE id = 1",
        "INSERT INTO sales_2027 VALUES (3, '2027-07-07')",
        "TRUNCATE sales_2027",
        "TRUNCATE sales",
    ]);
    let told = |name: &str| {
        let mut events = stage.delivered(&stage.receiver, name);
        events.sort_by_key(Event::place);
        what(&events)
    };
    let root = told("by_root");
    assert_eq!(
        root,
        [
            "public.sales insert",
            "public.sales insert",
            // A row that moves is deleted here and inserted there.
            "public.sales delete",
            "public.sales insert",
            "public.sales insert",
            "public.sales_2027 truncate",
            "public.sales truncate",
        ]
    );
    let leaf = told("by_leaf");
    assert_eq!(
        leaf[..4],
        [
            "public.sales_2027 insert",
            "public.sales_2027 insert",
            "public.sales_2027 insert",
            "public.sales_2027 truncate"
        ]
    );
    let middle = told("by_middle");
    assert_eq!(middle[..2], ["public.sales_2026 insert", "public.sales_2026 delete"]);
    // `*.*` matches them all: the topmost names the event.
    assert_eq!(told("all")[0], "public.sales insert");
}
