-- What is refused, and in which words.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgstream_hooks;
RESET client_min_messages;
CREATE TABLE public.orders (id integer PRIMARY KEY, status text);
CREATE TABLE public.orders_archive (id integer PRIMARY KEY, archived date);
CREATE TEMPORARY TABLE passing (id integer);
CREATE UNLOGGED TABLE public.fast (id integer);
CREATE VIEW public.looks AS SELECT 1 AS id;
CREATE MATERIALIZED VIEW public.stands AS SELECT 1 AS id;
CREATE SEQUENCE public.counts;
\set url '\'https://example.com/hook\''

-- urls
SELECT pgwh.subscribe(NULL);
SELECT pgwh.subscribe('example.com/hook');
SELECT pgwh.subscribe('ftp://example.com/hook');
SELECT pgwh.subscribe('https://me:password@example.com/hook');
SELECT pgwh.subscribe(E'https://example.com/hook\n');
\set VERBOSITY terse
SELECT pgwh.subscribe('https://192.0.2.1/hook');
SELECT pgwh.subscribe('https://[fec0::1]/hook');
\set VERBOSITY default

-- tables
SELECT pgwh.subscribe(:url, tables => '{order}');
SELECT pgwh.subscribe(:url, tables => '{public.ordrs}');
SELECT pgwh.subscribe(:url, tables => '{public.orders, nowhere.nothing}');
SELECT pgwh.subscribe(:url, tables => '{passing}');
SELECT pgwh.subscribe(:url, tables => '{public.fast}');
SELECT pgwh.subscribe(:url, tables => '{public.looks}');
SELECT pgwh.subscribe(:url, tables => '{public.stands}');
SELECT pgwh.subscribe(:url, tables => '{public.counts}');
SELECT pgwh.subscribe(:url, tables => '{pg_catalog.pg_class}');
SELECT pgwh.subscribe(:url, tables => '{pg_class}');
SELECT pgwh.subscribe(:url, tables => '{information_schema.*}');
SELECT pgwh.subscribe(:url, tables => '{pgwh.subscriptions}');
SELECT pgwh.subscribe(:url, tables => '{pgwh.*}');
SELECT pgwh.subscribe(:url, tables => '{order*}');
SELECT pgwh.subscribe(:url, tables => '{a.b.c}');
SELECT pgwh.subscribe(:url, tables => '{"public.\"orders"}');
SELECT pgwh.subscribe(:url, tables => '{}');
SELECT pgwh.subscribe(:url, tables => '{public.orders, NULL}');
SELECT pgwh.subscribe(:url, tables => '{public.orders}', table_name => 'orders');
SELECT pgwh.subscribe(:url, schema => 'public', table_name => 'Orders');

-- the rest
SELECT pgwh.subscribe(:url, event_types => '{insert, upsert}');
SELECT pgwh.subscribe(:url, event_types => '{message:pgwh.emit}');
SELECT pgwh.subscribe(:url, event_types => '{insert, ddl}', format => 'supabase');
SELECT pgwh.subscribe(:url, event_types => '{}');
SELECT pgwh.subscribe(:url, headers => '{"x-key": "a\nb"}');
SELECT pgwh.subscribe(:url, headers => '{"x\r\n": "a"}');
SELECT pgwh.subscribe(:url, headers => '{"Webhook-Id": "a"}');
SELECT pgwh.subscribe(:url, headers => '{"content-length": "1"}');
SELECT pgwh.subscribe(:url, headers => '{"x-key": 1}');
SELECT pgwh.subscribe(:url, headers => '[]');
SELECT pgwh.subscribe(:url, headers => '{"X-Key": "a", "x-key": "b"}');
SELECT pgwh.subscribe(:url, secret => 'hunter2');
SELECT pgwh.subscribe(:url, secret => 'whsec_c2hvcnQ=');
SELECT pgwh.subscribe(:url, timeout => '0 s');
SELECT pgwh.subscribe(:url, timeout => '1 month');
SELECT pgwh.subscribe(:url, max_in_flight => 0);
SELECT pgwh.subscribe(:url, batch_size => 0);
SELECT pgwh.subscribe(:url, batch_size => 10001);
SELECT pgwh.subscribe(:url, batch_wait => '-1 s');
SELECT pgwh.subscribe(:url, batch_wait => '61 min');
SELECT pgwh.subscribe(:url, ordering => 'loose');
SELECT pgwh.subscribe(:url, retry_schedule => '{5 s, 0 s}');
SELECT pgwh.subscribe(:url, retry_schedule => '{31 days}');
SELECT pgwh.subscribe(:url, retry_schedule => '{1 s, NULL}');
SELECT pgwh.subscribe(:url, retry_schedule => array_fill('1 s'::interval, '{101}'));
SELECT pgwh.subscribe(:url, retention => '0 s');
SELECT pgwh.subscribe(:url, retention => '2 years');
SELECT pgwh.subscribe(:url, tables => '{orders}', columns => '{id, statsu}');
SELECT pgwh.subscribe(:url, tables => '{orders}', columns => '{archived}');
SELECT pgwh.subscribe(:url, tables => '{public.orders*}', columns => '{archived}', exclude_columns => '{status}');
SELECT pgwh.subscribe(:url, tables => '{orders}', exclude_columns => '{ID}');
SELECT pgwh.subscribe(:url, tables => '{public.nothing_*}', columns => '{id}');
SELECT pgwh.subscribe(:url, columns => '{}');
SELECT pgwh.subscribe(:url, exclude_columns => '{NULL}');
SELECT pgwh.subscribe(:url, name => '');
SELECT pgwh.subscribe(:url, name => E'a\nb');
SELECT pgwh.subscribe(:url, filters => 'id > 1');

-- Each has an SQLSTATE that tells what kind of refusal it is.
\set VERBOSITY sqlstate
SELECT pgwh.subscribe('example.com');
SELECT pgwh.subscribe(NULL);
SELECT pgwh.subscribe(:url, tables => '{order}');
SELECT pgwh.subscribe(:url, tables => '{public.fast}');
SELECT pgwh.subscribe(:url, event_types => '{dml}');
SELECT pgwh.subscribe(:url, name => '');
SELECT pgwh.unsubscribe('nobody');
SELECT pgwh.subscribe(:url, tables => '{orders}', columns => '{nothing}');
SELECT pgwh.subscribe(:url, batch_size => 0);
\set VERBOSITY default

SELECT count(*) AS left_behind FROM pgwh.subscriptions;
DROP VIEW public.looks;
DROP MATERIALIZED VIEW public.stands;
DROP TABLE public.orders, public.orders_archive, public.fast;
DROP SEQUENCE public.counts;
