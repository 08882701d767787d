-- Pausing, giving up, sending again: what is refused, and in which words.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgstream_hooks;
RESET client_min_messages;
CREATE SCHEMA again;
SET search_path = again, public;
CREATE TABLE items (id integer PRIMARY KEY, name text);
CREATE TABLE pairs (a integer, b text, note text, PRIMARY KEY (a, b));
CREATE TABLE loose (a integer, b text);
SELECT pgwh.subscribe('https://example.com/hook', name => 'again', tables => '{again.*}') > 0 AS subscribed;

-- pause and resume
SELECT pgwh.pause('again'), pgwh.pause('again');
SELECT name, paused FROM pgwh.subscriptions WHERE name = 'again';
SELECT pgwh.resume('again'), pgwh.resume('again');
SELECT name, paused FROM pgwh.subscriptions WHERE name = 'again';
SELECT pgwh.pause('agian');
SELECT pgwh.resume(NULL);

-- skip and redeliver
SELECT pgwh.skip(NULL);
SELECT pgwh.skip(4611686018427387904);
SELECT pgwh.skip(-1);
SELECT pgwh.redeliver(NULL);
SELECT pgwh.redeliver(4611686018427387904);

-- replay
SELECT pgwh.replay('nobody', now());
SELECT pgwh.replay('again', NULL::timestamptz);
SELECT pgwh.replay('again', since_lsn => NULL);
SELECT pgwh.replay('again', now(), since_lsn => '0/1');
SELECT pgwh.replay('again', until_lsn => '0/1');
SELECT pgwh.replay('again', timestamptz '2026-01-02 00:00Z', timestamptz '2026-01-01 00:00Z');
SELECT pgwh.replay('again', since_lsn => '0/2', until_lsn => '0/1');
SELECT pgwh.replay('again', now(), "only" => 'daed');
SELECT pgwh.replay('again', now(), "only" => 'everything');
SELECT pgwh.replay('again', now(), "only" => NULL);
SELECT pgwh.replay('again', now(), tables => '{}');
SELECT pgwh.replay('again', now(), tables => '{again.itmes}');
SELECT pgwh.replay('again', now(), tables => '{again.items, order*}');

-- What is asked for in a transaction that rolls back was never asked for.
BEGIN;
SELECT pgwh.replay('again', now() - interval '1 hour', now(), 'dead', '{items}') IS NOT NULL AS asked;
SELECT subscription, since < until AS in_order, since_lsn, "only", tables, state, total, done FROM pgwh.replays ORDER BY id DESC LIMIT 1;
SELECT command, subscription_id IS NULL AS of_nobody, replay_id IS NOT NULL AS of_a_replay FROM pgwh_internal.commands ORDER BY id DESC LIMIT 1;
SELECT pgwh.replay('again', since_lsn => '0/1', "only" => 'undelivered') IS NOT NULL AS asked;
SELECT since, since_lsn, until_lsn, "only", tables FROM pgwh.replays ORDER BY id DESC LIMIT 1;
SELECT pgwh.cancel_replay(max(id)) IS NOT NULL AS asked FROM pgwh.replays;
SELECT command FROM pgwh_internal.commands ORDER BY id DESC LIMIT 1;
ROLLBACK;
SELECT pgwh.cancel_replay(NULL);
SELECT pgwh.cancel_replay(4611686018427387904);

-- why and forget
SELECT * FROM pgwh.why(NULL, '{"id": 1}');
SELECT * FROM pgwh.why('items', NULL);
SELECT * FROM pgwh.why('itmes', '{"id": 1}');
SELECT * FROM pgwh.why('again.itmes', '{"id": 1}');
SELECT * FROM pgwh.why('again.*', '{"id": 1}');
SELECT * FROM pgwh.why('pg_class', '{"oid": 1}');
SELECT * FROM pgwh.why('items', '7');
SELECT * FROM pgwh.why('pairs', '{}');
SELECT * FROM pgwh.why('items', '{"idd": 1}');
SELECT * FROM pgwh.why('items', '{"name": "x"}');
SELECT * FROM pgwh.why('pairs', '{"a": 1}');
SELECT * FROM pgwh.why('pairs', '{"a": 1, "b": "x", "note": "y"}');
SELECT * FROM pgwh.why('loose', '{"c": 1}');
SELECT * FROM pgwh.forget('items', '{"name": "x"}');
SELECT * FROM pgwh.forget('again.itmes', '{"id": 1}');
SELECT event_id, subscription, fate FROM pgwh.why('items', '{"id": -1}') WHERE subscription = 'again';
UPDATE pgwh.subscriptions SET tables = '{again.pairs}' WHERE name = 'again';
SELECT subscription, fate FROM pgwh.why('items', '{"id": -1}') WHERE subscription = 'again';
SELECT subscription, fate FROM pgwh.why('pairs', '{"b": "x", "a": 1.0}') WHERE subscription = 'again';
UPDATE pgwh.subscriptions SET enabled = false WHERE name = 'again';
SELECT subscription, fate FROM pgwh.why('pairs', '{"b": "x", "a": 1}') WHERE subscription = 'again';
SELECT * FROM pgwh.forget('loose', '{"b": "nobody has this"}');

-- A search path in which somebody put things of his own changes nothing.
CREATE FUNCTION again.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS $$SELECT 'infinity'::timestamptz$$;
SET search_path = again, pg_catalog;
BEGIN;
SELECT pgwh.replay('again', now()) IS NOT NULL AS asked;
ROLLBACK;
SELECT fate FROM pgwh.why('pairs', '{"a": 1, "b": "x"}') WHERE subscription = 'again';
SHOW search_path;
RESET search_path;

SELECT pgwh.unsubscribe('again');
SET client_min_messages = warning;
DROP SCHEMA again CASCADE;
