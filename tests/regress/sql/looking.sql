-- pgwh.status, health and wait.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgstream_hooks;
RESET client_min_messages;
CREATE TABLE public.orders (id integer PRIMARY KEY);
SELECT pgwh.subscribe('https://example.com/hook', name => 'on', tables => '{public.orders}') IS NOT NULL AS ok;
SELECT pgwh.subscribe('https://example.com/hook', name => 'off', enabled => false) IS NOT NULL AS ok;

-- Figures are null until the dispatcher knows the subscription.
SELECT name, url, state, reason, next_step, bottleneck, gap,
  oldest_pending, last_success_at, last_failure_at, last_status, last_error, next_attempt_at, p50_ms, p99_ms
FROM pgwh.status() ORDER BY name \gx
SELECT count(*) FROM pgwh.status;

-- A table that is gone is told, and what to type.
DROP TABLE public.orders;
SELECT name, state, reason, next_step FROM pgwh.status() WHERE name = 'on';
SELECT ok, detail, hint FROM pgwh.health() WHERE check_name = 'subscriptions valid';
UPDATE pgwh.subscriptions SET tables = '{*.*}' WHERE name = 'on';

-- By what a copy is noticed is the machine's affair.
SELECT check_name, ok, CASE WHEN check_name <> 'copy detection' THEN hint END AS hint FROM pgwh.health();

SELECT pgwh.wait('off');
SELECT pgwh.wait('of');
SELECT pgwh.wait('on', NULL);

-- Looking needs no right to write.
BEGIN READ ONLY;
SELECT count(*) > 0 AS ok FROM pgwh.health();
SELECT count(*) AS subscriptions FROM pgwh.status();
COMMIT;
DELETE FROM pgwh.subscriptions;
