use super::*;

fn spec(tables: &[&str], filter: Option<&str>) -> Spec {
    Spec {
        tables: tables.iter().map(|table| (*table).to_owned()).collect(),
        event_types: vec!["insert".to_owned()],
        filter: filter.map(str::to_owned),
        changed: None,
        enabled: true,
        origin: None,
        home: "here/1".to_owned(),
        grantee: Grantee::default(),
    }
}

fn name(schema: &str, table: &str) -> Level {
    let name = TableName { schema: schema.into(), table: table.into() };
    Level { oid: 1, name, is_user_table: true }
}

fn ids(router: &Router, levels: &[Level]) -> Vec<i64> {
    let mut ids: Vec<i64> = router.interests(levels).map(|(interest, _)| interest.subscription).collect();
    ids.sort_unstable();
    ids
}

#[test]
fn who_asked_for_a_table_is_found_whether_by_name_or_wildcard() {
    let mut router = Router::new("here".to_owned());
    router.apply(1, Some(&spec(&["public.orders"], None)));
    router.apply(2, Some(&spec(&["public.*"], None)));
    router.apply(3, Some(&spec(&["public.leads", "public.orders"], Some("id > 1"))));
    router.apply(4, Some(&Spec { home: "elsewhere/1".to_owned(), ..spec(&["*.*"], None) }));
    router.apply(5, Some(&Spec { enabled: false, ..spec(&["*.*"], None) }));
    assert_eq!(ids(&router, &[name("public", "orders")]), [1, 2, 3]);
    assert_eq!(router.declared_interests(&[name("public", "orders")]).count(), 4);
    assert!(ids(&router, &[name("sales", "orders")]).is_empty());
    router.apply(3, Some(&spec(&["sales.orders"], None)));
    router.apply(1, None);
    assert_eq!(ids(&router, &[name("public", "orders")]), [2]);
    assert_eq!(ids(&router, &[name("sales", "orders")]), [3]);
    for id in 1..6 {
        router.apply(id, None);
    }
    assert!(router.by_table.is_empty() && router.with_wildcards.is_empty() && router.groups.is_empty());
}

#[test]
fn a_partition_is_known_by_the_topmost_name_asked_for() {
    let names = [name("public", "orders_1"), name("public", "orders")];
    let mut router = Router::new("here".to_owned());
    router.apply(1, Some(&spec(&["public.orders"], None)));
    router.apply(2, Some(&spec(&["public.orders_1"], None)));
    router.apply(3, Some(&spec(&["public.*"], None)));
    let mut found: Vec<_> = router
        .interests(&names)
        .map(|(found, _)| (found.subscription, found.level, found.is_named))
        .collect();
    found.sort_unstable();
    assert_eq!(found, [(1, 1, true), (2, 0, true), (3, 1, false)]);
    assert_eq!(router.interest(2, &names).map(|(interest, _)| interest.level), Some(0));
    assert!(router.interest(9, &names).is_none());
}

#[test]
fn a_table_of_an_extension_is_known_by_name_only() {
    let members = |level: Level| Level { is_user_table: false, ..level };
    let mut router = Router::new("here".to_owned());
    for (id, pattern) in [(1, "*.*"), (2, "cron.*"), (3, "*.job"), (4, "cron.job"), (5, "public.jobs")] {
        router.apply(id, Some(&spec(&[pattern], None)));
    }
    assert_eq!(ids(&router, &[name("cron", "job")]), [1, 2, 3, 4]);
    assert_eq!(ids(&router, &[members(name("cron", "job"))]), [4]);
    // A part of a user's table that an extension keeps in a schema of its own.
    assert_eq!(ids(&router, &[members(name("cron", "job")), name("public", "jobs")]), [1, 4, 5]);
}

#[test]
fn images_from_before_there_were_filters_are_read() {
    let old = r#"{"tables":["a.b"],"event_types":["insert"],"enabled":true,"home":"here/1"}"#;
    assert_eq!(serde_json::from_str::<Spec>(old).unwrap(), spec(&["a.b"], None));
}

fn router(subscriptions: &[(i64, &str, &[&str])]) -> Router {
    let mut router = Router::new("here".to_owned());
    for (id, tables, event_types) in subscriptions {
        let event_types = event_types.iter().map(|word| (*word).to_owned()).collect();
        let spec = Spec { event_types, ..spec(&[tables], None) };
        router.apply(*id, Some(&spec));
    }
    router
}

#[test]
fn rows_are_of_no_interest_to_who_asks_for_none() {
    let router = router(&[(1, "*.*", &["ddl", "message", "message:app"]), (2, "*.*", &["delete"])]);
    let interested: Vec<i64> = ids(&router, &[name("public", "t")]);
    assert_eq!(interested, [2]);
}

#[test]
fn the_key_is_shown_whatever_columns_are_asked_for() {
    let names = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
    let only = Grantee { columns: names(&["a"]), key_columns: names(&["k"]), ..Grantee::default() };
    let except = Grantee { exclude_columns: names(&["a", "id"]), ..Grantee::default() };
    for (column, is_key, by_only, by_except) in [
        ("id", true, true, true),
        ("a", false, true, false),
        ("b", false, false, true),
        ("k", false, true, true),
    ] {
        assert_eq!(only.is_shown(column, is_key), by_only, "{column}");
        assert_eq!(except.is_shown(column, is_key), by_except, "{column}");
        assert!(Grantee::default().is_shown(column, is_key));
    }
}

#[test]
fn subscriptions_of_one_owner_share_what_is_asked_of_it() {
    let mut router = Router::new("here".to_owned());
    let owned = |owner: &str| Spec {
        grantee: Grantee { owner: owner.to_owned(), ..Grantee::default() },
        ..spec(&["public.t"], None)
    };
    for (id, owner) in [(1, "ann"), (2, "bob"), (3, "ann")] {
        router.apply(id, Some(&owned(owner)));
    }
    let names = [name("public", "t")];
    let grantee = |router: &Router, id| Arc::clone(router.interest(id, &names).unwrap().1.grantee);
    assert!(Arc::ptr_eq(&grantee(&router, 1), &grantee(&router, 3)));
    assert_eq!((router.owner(2), router.owner(4)), (Some("bob"), None));
    router.apply(1, None);
    router.apply(3, Some(&owned("bob")));
    assert!(Arc::ptr_eq(&grantee(&router, 2), &grantee(&router, 3)));
    assert_eq!(router.grantees.len(), 1);
}
