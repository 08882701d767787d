//! Text of users is neither SQL nor a header, and their functions do not run with the privileges of the extension.

use harness::Cluster;

use crate::roles::{create_roles, stage, stage_with_roles};

#[test]
fn users_functions_never_run_as_the_extension() {
    let (cluster, receiver) = stage();
    create_roles(&cluster, &["eve"]);
    let eve = cluster.as_role("eve");
    eve.sql(
        "CREATE SCHEMA evil;
         CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN RAISE 'hijacked'; END $$;
         CREATE FUNCTION evil.same(bigint, bigint) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'hijacked'; END $$;
         CREATE FUNCTION evil.same(text, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'hijacked'; END $$;
         CREATE FUNCTION evil.starts_with(text, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'hijacked'; END $$;
         CREATE OPERATOR evil.= (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = evil.same);
         CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.same);
         CREATE OPERATOR evil.<> (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.same);",
    );
    let url = receiver.url("/s");
    let mut client = eve.connect();
    client.batch_execute("SET search_path = evil, pg_catalog").unwrap();
    for statement in [
        format!(
            "SELECT pgwh.subscribe('{url}', name => 's', tables => '{{public.t}}', headers => '{{\"x-token\": \"a\"}}')"
        ),
        format!("SELECT pgwh.subscribe('{url}', tables => '{{public.t}}')"),
        "SELECT pgwh.secret('s')".to_owned(),
        "SELECT pgwh.rotate_secret('s', overlap => '1 h')".to_owned(),
        "UPDATE pgwh.subscriptions SET headers = '{\"x-token\": \"b\"}'".to_owned(),
        "SELECT pgwh.adopt()".to_owned(),
        "SELECT * FROM pgwh.status()".to_owned(),
        "SELECT pgwh.pause('s'), pgwh.resume('s')".to_owned(),
    ] {
        client.batch_execute(&statement).unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    }
}

#[test]
fn names_and_headers_inject_neither_sql_nor_headers() {
    let (cluster, receiver) = stage();
    for name in ["'; DROP TABLE t; --", "\"; DROP TABLE t; --", "$$; DROP TABLE t; $$", "%s %I $1 \\"] {
        let quoted = name.replace('\'', "''");
        cluster.sql(&format!("SELECT pgwh.subscribe('{}', name => '{quoted}')", receiver.url("/injected")));
        cluster.sql(&format!(
            "SELECT pgwh.secret('{quoted}'), pgwh.rotate_secret('{quoted}'), pgwh.pause('{quoted}')"
        ));
        let next_step = cluster.value(&format!("SELECT next_step FROM pgwh.status WHERE name = '{quoted}'"));
        cluster.sql(&next_step);
        assert_eq!(
            cluster.value(&format!("SELECT state FROM pgwh.status WHERE name = '{quoted}'")),
            "active"
        );
        cluster.sql(&format!("SELECT pgwh.unsubscribe('{quoted}')"));
    }
    for pattern in ["t'; DROP TABLE t; --", "public.t\"; DROP TABLE t; --"] {
        let quoted = pattern.replace('\'', "''").replace('"', "\\\"");
        let refused = cluster
            .refused(&format!("SELECT pgwh.subscribe('http://127.0.0.1:1/', tables => '{{\"{quoted}\"}}')"));
        assert!(["22023", "42P01"].contains(&refused.code.as_str()), "{refused:?}");
    }
    for (name, value) in [
        ("x-a", "b\\r\\nwebhook-id: forged"),
        ("x-a", "b\\nc"),
        ("x-a\\r\\nx-b", "c"),
        ("x a", "b"),
        ("", "b"),
        ("webhook-signature", "v1,forged"),
        ("Webhook-Id", "forged"),
        ("Host", "internal"),
        ("content-length", "0"),
        ("transfer-encoding", "chunked"),
        ("x-a", "\\u00e9"),
    ] {
        let refused = cluster.refused(&format!(
            "SELECT pgwh.subscribe('http://127.0.0.1:1/', headers => '{{\"{name}\": \"{value}\"}}')"
        ));
        assert_eq!(refused.code, "22023", "{name}: {value}");
        assert!(!refused.hint.is_empty() && !format!("{refused:?}").contains("forged"), "{refused:?}");
    }
    assert_eq!(cluster.value("SELECT count(*) FROM t"), "0");
}

#[test]
fn users_types_and_casts_never_run_as_the_extension() {
    let (cluster, receiver) = stage_with_roles(&["eve"]);
    cluster.sql("GRANT CREATE ON DATABASE postgres TO eve");
    let eve = cluster.as_role("eve");
    eve.sql(
        "CREATE SCHEMA evil; GRANT USAGE ON SCHEMA evil TO PUBLIC;
         CREATE FUNCTION evil.tell(what text) RETURNS boolean LANGUAGE plpgsql AS
             $$ BEGIN RAISE WARNING 'hijacked by % as %', what, current_user; RETURN true; END $$;
         CREATE TYPE evil.mood AS ENUM ('glad', 'sad');
         CREATE TYPE evil.pair AS (a int, b text);
         CREATE DOMAIN evil.checked AS text CHECK (evil.tell('a domain of ' || value));
         CREATE TYPE evil.span AS RANGE (subtype = text);
         CREATE FUNCTION evil.pair_json(evil.pair) RETURNS json LANGUAGE plpgsql AS $$ BEGIN PERFORM evil.tell('a cast'); RETURN '1'; END $$;
         CREATE CAST (evil.pair AS json) WITH FUNCTION evil.pair_json(evil.pair) AS IMPLICIT;
         CREATE FUNCTION evil.mood_json(evil.mood) RETURNS json LANGUAGE plpgsql AS $$ BEGIN PERFORM evil.tell('a cast'); RETURN '1'; END $$;
         CREATE CAST (evil.mood AS json) WITH FUNCTION evil.mood_json(evil.mood) AS IMPLICIT;
         CREATE FUNCTION evil.pair_text(evil.pair) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM evil.tell('a cast'); RETURN '1'; END $$;
         CREATE CAST (evil.pair AS text) WITH FUNCTION evil.pair_text(evil.pair) AS IMPLICIT;
         CREATE FUNCTION evil.pair_same(evil.pair, evil.pair) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RETURN evil.tell('an operator'); END $$;
         CREATE OPERATOR evil.= (LEFTARG = evil.pair, RIGHTARG = evil.pair, FUNCTION = evil.pair_same);
         CREATE TABLE evil.t (
             id int PRIMARY KEY, mood evil.mood, pair evil.pair, pairs evil.pair[], checked evil.checked, span evil.span,
             made text GENERATED ALWAYS AS (CASE WHEN id > 0 THEN 'x' END) STORED);
         ALTER TABLE evil.t REPLICA IDENTITY FULL;",
    );
    let insert = |id: i32| {
        eve.sql(&format!(
            "INSERT INTO evil.t VALUES ({id}, 'glad', ROW(1, 'b'), ARRAY[ROW(1, 'b')::evil.pair], 'c', '[a,b]')"
        ));
    };
    eve.subscribe(&receiver, "s", "tables => '{evil.t}'");
    let mut filtered = 0;
    for filter in [
        "pair = ROW(1, ''b'')::evil.pair",
        "pair::text = ''x''",
        "checked = ''c''::evil.checked",
        "evil.tell(''a filter'')",
        "pair OPERATOR(evil.=) pair",
    ] {
        let refused = eve.refused(&format!("SELECT pgwh.subscribe('http://127.0.0.1:1/', name => 'f', tables => '{{evil.t}}', filter => '{filter}')"));
        assert!(!refused.hint.is_empty(), "{refused:?}");
        filtered += 1;
    }
    assert_eq!(filtered, 5);
    eve.subscribe(
        &receiver,
        "enum",
        "tables => '{evil.t}', filter => 'mood = ''glad''', changed => '{pair, mood}'",
    );
    // The eyes of the owner are of no avail: what follows is what the workers do.
    let seen = cluster.log().matches("hijacked").count();
    insert(1);
    let told = cluster.log().matches("hijacked").count() - seen;
    eve.sql("UPDATE evil.t SET mood = 'sad', pair = ROW(2, 'c')");
    eve.sql("DELETE FROM evil.t");
    insert(2);
    assert_eq!(cluster.delivered(&receiver, "s").len(), 4);
    let event = &cluster.delivered(&receiver, "s")[0];
    assert_eq!(event["record"]["mood"], "glad");
    assert_eq!(event["record"]["pair"]["b"], "b");
    let seen_by_statements = cluster.log().matches("hijacked").count();
    assert!(told >= 1, "the domain does tell who inserts");
    eve.sql("SELECT pgwh.backfill('s')");
    cluster.wait_true("SELECT state = 'done' FROM pgwh.backfills");
    assert_eq!(cluster.delivered(&receiver, "s").len(), 5);
    let hidden: Vec<String> =
        cluster.log().lines().filter(|line| line.contains("hijacked")).map(str::to_owned).collect();
    assert!(hidden.iter().all(|line| line.contains("as eve")), "{hidden:?}");
    assert_eq!(hidden.len(), seen_by_statements, "{hidden:?}");
    assert!(hidden.iter().all(|line| line.contains("client backend")), "{hidden:?}");
}

#[test]
fn no_function_panics_or_crashes_whatever_it_is_given() {
    let cluster = Cluster::with_extension();
    // By the category of each argument's type (pg_type.typcategory): nulls, arrays of nulls, and the odd values.
    let values = [
        "'NULL'",
        "CASE category WHEN 'A' THEN '''{NULL}''' ELSE 'NULL' END",
        "CASE category WHEN 'A' THEN '''{}''' WHEN 'N' THEN '''-1''' WHEN 'B' THEN 'true' WHEN 'D' THEN '''infinity'''
            WHEN 'T' THEN '''-178000000 years''' WHEN 'S' THEN '''''' ELSE 'NULL' END",
    ];
    let mut internal = Vec::new();
    for value in values {
        let calls = cluster.column(&format!(
            "SELECT pronamespace::regnamespace || '.' || proname || '(' || coalesce(string_agg({value} || '::' || format_type(type, NULL), ', ' ORDER BY n), '') || ')'
             FROM pg_proc p LEFT JOIN LATERAL unnest(proargtypes::oid[]) WITH ORDINALITY a (type, n) ON true
                 LEFT JOIN LATERAL (SELECT typcategory FROM pg_type t WHERE t.oid = type) t (category) ON true
             WHERE pronamespace IN ('pgwh'::regnamespace, 'pgwh_internal'::regnamespace) AND prokind = 'f'
                 AND prorettype NOT IN ('trigger'::regtype, 'event_trigger'::regtype)
             GROUP BY p.oid, proname, pronamespace ORDER BY proname"
        ));
        assert!(calls.len() > 50);
        for call in calls {
            let mut session = cluster.connect();
            let call = format!("SET statement_timeout = '10 s'; BEGIN; SELECT {call}");
            if let Err(error) = session.batch_execute(&call)
                && error.code().is_none_or(|code| code.code() == "XX000")
            {
                internal.push(format!("{call}: {error:?}"));
            }
        }
    }
    assert_eq!(internal, [] as [&str; 0]);
    assert!(!cluster.log().contains("was terminated by signal"));
}
