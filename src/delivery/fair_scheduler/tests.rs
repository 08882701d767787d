//! Turns as the engine takes them.

use super::*;

fn turn(turns: &mut Turns, host: u64) -> Option<u32> {
    let who = turns.next()?;
    turns.offer(who, host, Pace::Swift);
    Some(who)
}

#[test]
fn each_gets_its_turn_however_much_the_others_have() {
    let mut turns = Turns::new(100);
    (0..3).for_each(|who| turns.offer(who, 1, Pace::Swift));
    let order: Vec<_> = (0..7).filter_map(|_| turn(&mut turns, 1)).collect();
    assert_eq!(order, [0, 1, 2, 0, 1, 2, 0]);
}

#[test]
fn hosts_take_turns_however_many_subscriptions_they_have() {
    let mut turns = Turns::new(100);
    (0..3).for_each(|who| turns.offer(who, 1, Pace::Swift));
    turns.offer(3, 2, Pace::Swift);
    let order: Vec<_> = (0..6)
        .filter_map(|_| {
            let who = turns.next()?;
            turns.offer(who, if who == 3 { 2 } else { 1 }, Pace::Swift);
            Some(who)
        })
        .collect();
    assert_eq!(order, [0, 3, 1, 3, 2, 3]);
}

/// One that has no request under way, and has had no answer.
fn nobody(pace: Pace) -> Candidate {
    Candidate { pace, under_way: 0, last_success_at: None }
}

/// Starts what may be started of a request each, as far as there is room; how many.
fn start_one_each(turns: &mut Turns, pace: Pace, now: Instant) -> usize {
    let mut count = 0;
    while let Some(who) = turns.next() {
        if turns.admit(who, who.into(), nobody(pace)) {
            turns.started(who, who.into(), nobody(pace), now);
            count += 1;
        }
    }
    count
}

#[test]
fn the_slow_get_half_of_the_room() {
    let (mut turns, now) = (Turns::new(8), Instant::now());
    (0..9).for_each(|who| turns.offer(who, who.into(), Pace::Slow));
    assert_eq!(start_one_each(&mut turns, Pace::Slow, now), 4);
    turns.offer(20, 20, Pace::Swift);
    assert_eq!(start_one_each(&mut turns, Pace::Swift, now), 1);
    turns.ended(Some((0, Pace::Slow)), 0);
    assert_eq!(start_one_each(&mut turns, Pace::Slow, now), 1);
}

/// So many that were quick hang with up to sixteen requests each, beside a limit of 160; how many are under way of each.
fn hanging(count: u32, now: Instant) -> (Turns, Vec<usize>) {
    let mut turns = Turns::new(160);
    let mut under_way = vec![0; count as usize];
    (0..count).for_each(|who| turns.offer(who, who.into(), Pace::Swift));
    while let Some(who) = turns.next() {
        let each = &mut under_way[who as usize];
        let candidate = Candidate { under_way: *each, ..nobody(Pace::Swift) };
        if turns.admit(who, who.into(), candidate) {
            turns.started(who, who.into(), candidate, now);
            *each += 1;
            if *each < 16 {
                turns.offer(who, who.into(), Pace::Swift);
            }
        }
    }
    (turns, under_way)
}

#[test]
fn those_that_hang_all_at_once_leave_room_for_others() {
    let now = Instant::now();
    let (mut turns, under_way) = hanging(200, now);
    let total: usize = under_way.iter().sum();
    assert_eq!(total, 122);
    turns.offer(200, 200, Pace::New);
    assert_eq!(start_one_each(&mut turns, Pace::New, now), 0);
    // As soon as one of those on trial is known to hang, it is its turn, before those that were there before it.
    assert!(turns.awaits_trials());
    let on_trial = (0..200).find(|who| turns.seat(*who).is_on_trial).unwrap();
    turns.changed(on_trial, Pace::Swift, Pace::Slow, 1);
    assert!([turns.next(), turns.next()].contains(&Some(200)));
}

#[test]
fn who_answers_while_others_hang_may_send_more_than_one_request() {
    let now = Instant::now();
    let (mut turns, _) = hanging(100, now);
    let proven = Candidate { under_way: 5, last_success_at: Some(now), ..nobody(Pace::Swift) };
    turns.offer(300, 300, Pace::Swift);
    assert!(turns.admit(300, 300, proven));
    let long_ago = now.checked_sub(std::time::Duration::from_secs(9));
    assert!(!turns.admit(300, 300, Candidate { last_success_at: long_ago, ..proven }));
}

#[test]
fn the_last_room_is_for_single_requests_to_those_that_answer() {
    let now = Instant::now();
    let (mut turns, _) = hanging(100, now);
    let start = |turns: &mut Turns, candidate: Candidate| {
        let who = 300..400u32;
        let has_started = |who: &u32| {
            let has_room = turns.has_room_for(candidate);
            if has_room {
                turns.started(*who, (*who).into(), candidate, now);
            }
            has_room
        };
        who.filter(has_started).count()
    };
    let proven = Candidate { under_way: 1, last_success_at: Some(now), ..nobody(Pace::Swift) };
    assert_eq!(start(&mut turns, proven), 30);
    assert_eq!(start(&mut turns, nobody(Pace::New)), 0);
    assert_eq!(start(&mut turns, Candidate { under_way: 0, ..proven }), 10);
    assert_eq!(turns.in_flight(), 160);
}

#[test]
fn who_was_held_back_is_taken_when_there_is_room_again() {
    let now = Instant::now();
    let (mut turns, under_way) = hanging(100, now);
    assert_eq!(turns.take_held(), None);
    let who = under_way.iter().position(|each| *each > 1).unwrap() as u32;
    (0..60).for_each(|_| turns.ended(Some((who, Pace::Swift)), who.into()));
    let held: Vec<u32> = std::iter::from_fn(|| turns.take_held()).collect();
    assert!(!held.is_empty());
    assert!(held.iter().all(|who| under_way[*who as usize] > 0), "{held:?}");
}

#[test]
fn offering_twice_gives_one_turn() {
    let mut turns = Turns::new(100);
    [7, 7, 2].into_iter().for_each(|who| turns.offer(who, 1, Pace::Swift));
    assert_eq!(turns.waiting(), 2);
    assert_eq!([turns.next(), turns.next(), turns.next()], [Some(7), Some(2), None]);
    assert_eq!(turns.waiting(), 0);
}

#[test]
fn one_that_withdrew_or_moved_is_passed_over_and_keeps_a_single_place() {
    let mut turns = Turns::new(100);
    turns.offer(1, 1, Pace::Swift);
    turns.withdraw(1);
    turns.withdraw(1);
    assert_eq!((turns.waiting(), turns.next()), (0, None));
    turns.offer(1, 1, Pace::Swift);
    turns.withdraw(1);
    turns.offer(1, 1, Pace::Slow);
    turns.offer(1, 1, Pace::Swift);
    assert_eq!(turns.waiting(), 1);
    assert_eq!([turns.next(), turns.next()], [Some(1), None]);
}

#[test]
fn a_full_pool_gives_no_turn_until_a_request_ends() {
    let mut turns = Turns::new(1);
    turns.offer(1, 1, Pace::Swift);
    turns.started(1, 1, nobody(Pace::Swift), Instant::now());
    assert_eq!(turns.next(), None);
    turns.ended(Some((1, Pace::Swift)), 1);
    assert_eq!(turns.next(), Some(1));
}

#[test]
fn a_host_that_is_sent_enough_waits_and_others_do_not() {
    let (mut turns, now) = (Turns::new(100), Instant::now());
    turns.set_host_limits(HostLimits { max_in_flight: Some(2), rate_limit: None });
    let start = |turns: &mut Turns| {
        let who = turns.next()?;
        turns.started(who, u64::from(who) / 10, nobody(Pace::Swift), now);
        Some(who)
    };
    [10, 11, 12, 13, 20].into_iter().for_each(|who| turns.offer(who, u64::from(who) / 10, Pace::Swift));
    let order: Vec<_> = std::iter::from_fn(|| start(&mut turns)).collect();
    assert_eq!(order, [10, 20, 11]);
    turns.ended(Some((10, Pace::Swift)), 1);
    assert_eq!([start(&mut turns), start(&mut turns)], [Some(12), None]);
    turns.set_host_limits(HostLimits::default());
    assert_eq!(start(&mut turns), Some(13));
}

#[test]
fn a_host_is_sent_no_more_a_second_than_it_may_be() {
    let (mut turns, start) = (Turns::new(100), Instant::now());
    turns.set_host_limits(HostLimits { max_in_flight: None, rate_limit: std::num::NonZeroU32::new(10) });
    let (mut now, mut count) = (start, 0);
    while now < start + std::time::Duration::from_secs(3) {
        (1..=5).for_each(|who| turns.offer(who, 7, Pace::Swift));
        turns.wake(now);
        while turns.next().is_some() {
            count += 1;
            turns.started(1, 7, nobody(Pace::Swift), now);
            turns.ended(Some((1, Pace::Swift)), 7);
        }
        now = turns.next_wakeup().unwrap();
    }
    assert_eq!(count, 31);
}
