-- pgwh.subscribe, unsubscribe and secret. Nothing here commits a change, so nothing is sent.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgstream_hooks;
RESET client_min_messages;
CREATE SCHEMA shop;
CREATE TABLE shop.orders (id integer PRIMARY KEY);
CREATE TABLE shop."Odd.Name" (id integer PRIMARY KEY);
CREATE TABLE shop.wide (id integer PRIMARY KEY, total numeric, "Note" text);
CREATE TABLE shop.parted (id integer) PARTITION BY RANGE (id);
CREATE TABLE shop.parted_1 PARTITION OF shop.parted FOR VALUES FROM (1) TO (10);

-- The least that is needed; the rest has defaults.
SELECT pgwh.subscribe('https://example.com/all') AS all_id \gset
SELECT regexp_replace(name, '-[0-9a-f]{8}$', '-<digest>') AS name, url, tables, event_types, headers, timeout, max_in_flight, enabled, owner = current_user AS mine,
  home = pgwh_internal.home() AS here FROM pgwh.subscriptions WHERE id = :all_id;
SELECT columns, exclude_columns, batch_size, batch_wait, ordering, retry_schedule, retention, paused, disabled_reason
FROM pgwh.subscriptions WHERE id = :all_id;

-- Everything by name.
SELECT pgwh.subscribe('https://example.com/orders', name => 'orders',
  tables => '{"shop.\"Odd.Name\"", SHOP.orders, shop.p*, shop.orders, other.*}', event_types => '{D, Insert, i}',
  headers => '{"x-tenant": "7"}', secret => 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw', timeout => '3 s',
  max_in_flight => 4, enabled => false) AS id \gset
SELECT * FROM (SELECT name, url, tables, event_types, headers, timeout, max_in_flight, enabled
  FROM pgwh.subscriptions WHERE id = :id) s \gx
SELECT pgwh.secret('orders');

-- Subscribing again under its name changes it, defaults included; the key stays.
SELECT pgwh.subscribe('https://example.com/orders', name => 'orders', tables => '{shop.orders}') = :id AS same;
SELECT url, tables, event_types, headers, timeout, max_in_flight, enabled FROM pgwh.subscriptions WHERE id = :id;
SELECT pgwh.secret('orders');
-- Without a name, the same url and tables do, in any spelling.
SELECT pgwh.subscribe('https://example.com/orders', tables => '{"\"shop\".\"orders\""}', event_types => '{T}') = :id AS same;
SELECT pgwh.subscribe('https://example.com/orders', schema => 'shop', table_name => 'orders', event_types => '{U}') = :id AS same;
SET search_path = shop, public;
SELECT pgwh.subscribe('https://example.com/orders', tables => '{Orders}', event_types => '{I}') = :id AS same;
SELECT pgwh.subscribe('https://example.com/orders', table_name => 'orders', event_types => '{I,U}') = :id AS same;
RESET search_path;
SELECT name, tables, event_types FROM pgwh.subscriptions WHERE id = :id;

-- Names made up are the same for the same, and others for others.
SELECT count(DISTINCT pgwh.subscribe('https://example.com/x' || i % 3, tables => '{shop.*}')) FROM generate_series(1, 9) i;
SELECT regexp_replace(name, '-[0-9a-f]{8}$', '-<digest>') AS name, url FROM pgwh.subscriptions WHERE url LIKE '%/x%' ORDER BY 2;

\set orders :id
-- One schema, a partitioned table, a partition, everything.
SELECT pgwh.subscribe('https://example.com/s', schema => 'shop') AS id \gset
SELECT tables FROM pgwh.subscriptions WHERE id = :id;
SELECT pgwh.subscribe('https://example.com/p', tables => '{shop.parted}') AS id \gset
SELECT tables FROM pgwh.subscriptions WHERE id = :id;
SELECT pgwh.subscribe('https://example.com/p1', tables => '{shop.parted_1}') AS id \gset
SELECT tables FROM pgwh.subscriptions WHERE id = :id;
SELECT pgwh.subscribe('https://example.com/*', tables => '{*}') AS id \gset
SELECT tables FROM pgwh.subscriptions WHERE id = :id;

-- Batches, order, retries, retention; an empty schedule means one attempt.
SELECT pgwh.subscribe('https://example.com/b', name => 'batches', tables => '{shop.wide}', columns => '{total, Note}',
  batch_size => 100, batch_wait => '250 ms', ordering => ' Strict', retry_schedule => '{1 s, 1 day, 30 days}',
  retention => '1 week') AS id \gset
SELECT * FROM (SELECT columns, exclude_columns, batch_size, batch_wait, ordering, retry_schedule, retention
  FROM pgwh.subscriptions WHERE id = :id) s \gx
SELECT pgwh.subscribe('https://example.com/b', name => 'batches', tables => '{shop.*}', exclude_columns => '{Note}',
  ordering => 'none', retry_schedule => '{}') = :id AS same;
SELECT * FROM (SELECT columns, exclude_columns, batch_size, batch_wait, ordering, retry_schedule, retention
  FROM pgwh.subscriptions WHERE id = :id) s \gx

-- A key of its own for each, that can sign.
SELECT count(*) = count(DISTINCT secret) AS different, bool_and(secret ~ '^whsec_[A-Za-z0-9+/]{32}$') AS keys
FROM pgwh.secrets;
SELECT count(*) FROM pgwh.subscriptions s LEFT JOIN pgwh.secrets k ON k.subscription_id = s.id WHERE k.secret IS NULL;

SELECT pgwh.unsubscribe('orders');
SELECT pgwh.unsubscribe('orders');
SELECT pgwh.secret('order');
SELECT pgwh.secret(NULL);
SELECT count(*) FROM pgwh.secrets WHERE subscription_id = :orders;

DELETE FROM pgwh.subscriptions;
SELECT count(*) FROM pgwh.secrets;
DROP SCHEMA shop CASCADE;
