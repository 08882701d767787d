-- INSERT, UPDATE and DELETE are as good as the functions, and checked by the same rules.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgstream_hooks;
RESET client_min_messages;
CREATE TABLE public.orders (id integer PRIMARY KEY, status text);
-- Begins once changes are captured, which a transaction that has written cannot wait for.
SELECT pgwh.subscribe('https://example.com/first', name => 'first') IS NOT NULL AS ready;

INSERT INTO pgwh.subscriptions (url, tables, event_types) VALUES ('https://example.com/plain', '{Orders}', '{d,I}')
RETURNING regexp_replace(name, '-[0-9a-f]{8}$', '-<digest>') AS name, tables, event_types, headers, timeout, max_in_flight, enabled;
SELECT secret IS NOT NULL AS has_key FROM pgwh.secrets JOIN pgwh.subscriptions s ON s.id = subscription_id
WHERE url = 'https://example.com/plain';
\set VERBOSITY terse
INSERT INTO pgwh.subscriptions (url, tables) VALUES ('https://example.com/plain', '{public.orders}');
\set VERBOSITY default
INSERT INTO pgwh.subscriptions (name, url) VALUES ('bad', 'nonsense');
INSERT INTO pgwh.subscriptions (name, url, owner) VALUES ('bad', 'https://example.com/', 'regress_nobody');
INSERT INTO pgwh.subscriptions (name, url, enabled) VALUES ('unsaid', 'https://example.com/', NULL) RETURNING enabled;

UPDATE pgwh.subscriptions SET event_types = '{T,u}', timeout = '1 min' WHERE name = 'first' RETURNING event_types, timeout;
UPDATE pgwh.subscriptions SET tables = '{public.ordrs}' WHERE name = 'first';
UPDATE pgwh.subscriptions SET headers = '{"host": "x"}' WHERE name = 'first';
UPDATE pgwh.secrets SET secret = 'hunter2';
UPDATE pgwh.subscriptions SET tables = '{public.orders}', columns = '{status}', batch_size = 10, batch_wait = NULL,
  ordering = 'NONE', retry_schedule = NULL, retention = '1 h', paused = NULL
WHERE name = 'first' RETURNING columns, batch_size, batch_wait, ordering, retry_schedule, retention, paused;
UPDATE pgwh.subscriptions SET columns = '{stat}' WHERE name = 'first';
UPDATE pgwh.subscriptions SET exclude_columns = '{status}' WHERE name = 'first';
UPDATE pgwh.subscriptions SET batch_size = 0 WHERE name = 'first';
UPDATE pgwh.subscriptions SET ordering = 'loose' WHERE name = 'first';
UPDATE pgwh.subscriptions SET retry_schedule = '{{1 s}, {0 s}}' WHERE name = 'first';
-- A column that is gone does not stand in the way of changing something else, but is not one of other tables.
ALTER TABLE public.orders DROP COLUMN status;
UPDATE pgwh.subscriptions SET enabled = false WHERE name = 'first';
ALTER TABLE public.orders DROP COLUMN status;
UPDATE pgwh.subscriptions SET enabled = true WHERE name = 'first';
UPDATE pgwh.subscriptions SET batch_size = 20 WHERE name = 'first' RETURNING columns, batch_size;
UPDATE pgwh.subscriptions SET tables = '{public.*}' WHERE name = 'first';
-- Why it was disabled is of no interest any more once it is enabled.
UPDATE pgwh.subscriptions SET enabled = false, disabled_reason = 'tried' WHERE name = 'first' RETURNING disabled_reason;
UPDATE pgwh.subscriptions SET max_in_flight = 2 WHERE name = 'first' RETURNING disabled_reason;
UPDATE pgwh.subscriptions SET enabled = true, paused = true WHERE name = 'first' RETURNING disabled_reason, paused;
SELECT updated_at > created_at AS changed FROM pgwh.subscriptions WHERE name = 'first';

-- A table that is gone does not stand in the way of changing something else.
DROP TABLE public.orders;
UPDATE pgwh.subscriptions SET enabled = false WHERE url = 'https://example.com/plain' RETURNING tables, enabled;

-- A row that comes from elsewhere, as a dump has it, is kept as it is, and held.
INSERT INTO pgwh.subscriptions (name, url, tables, event_types, headers, timeout, max_in_flight, owner, home)
VALUES ('copy', 'https://192.0.2.1/', '{nowhere.nothing}', '{insert}', '{}', '1 s', 1, 'regress_nobody', 'elsewhere');
SELECT name, state, reason, next_step FROM pgwh.status() WHERE name = 'copy';
SELECT count(*) AS keys FROM pgwh.secrets JOIN pgwh.subscriptions s ON s.id = subscription_id WHERE s.name = 'copy';
-- Armed here, it is checked.
\set VERBOSITY terse
UPDATE pgwh.subscriptions SET home = DEFAULT WHERE name = 'copy';
\set VERBOSITY default
UPDATE pgwh.subscriptions SET home = DEFAULT, owner = DEFAULT, url = 'https://example.com/', tables = '{*.*}' WHERE name = 'copy';
-- The key that it had is not known here, and another one is nothing that its receiver expects.
SELECT count(*) AS keys FROM pgwh.secrets JOIN pgwh.subscriptions s ON s.id = subscription_id WHERE s.name = 'copy';
SELECT name, state, reason, next_step FROM pgwh.status() WHERE name = 'copy';
SELECT pgwh.rotate_secret('copy') ~ '^whsec_' AS renewed;
SELECT name, state FROM pgwh.status() WHERE name = 'copy';

BEGIN;
DELETE FROM pgwh.subscriptions;
ROLLBACK;
SELECT count(*) FROM pgwh.subscriptions;
DELETE FROM pgwh.subscriptions;
