//! What subscribing again changes without saying so: settings that are left out go back to their defaults, and a subscription that
//! was disabled or held is sent to again.

use pgrx::prelude::*;

use crate::api::authorization::with_plain_names;
use crate::error::Error;
use crate::pg::command::notice::Notice;
use crate::pg::values::encoding;
use crate::pg::values::encoding::{Text, Texts as _};

/// A subscription before it is subscribed again, as JSON.
pub struct Before(Option<String>);

/// The settings that `subscribe` sets, as JSON in the present session's style: `$1` is the subscription's name.
const SETTINGS: &str = "
    SELECT to_jsonb(r)::text FROM (
        SELECT tables, event_types, filter, changed, columns, exclude_columns, transform, route, format, headers, batch_size,
            batch_wait, ordering, key_columns, timeout, max_in_flight, rate_limit, retry_schedule, retention, compress, origin,
            enabled, paused, disabled_reason, home = pgwh_internal.home() AS armed
        FROM pgwh.subscriptions WHERE name = $1) r";

/// Settings that differ between `$1` and `$2`, both as JSON, and are the default in `$2`: name and value in `$1`.
const BACK_TO_DEFAULT: &str = "
    SELECT o.key, CASE WHEN o.key = 'headers' THEN (SELECT string_agg(h.key, ', ' ORDER BY h.key) FROM jsonb_each(o.value) h)
        WHEN jsonb_typeof(o.value) = 'array' THEN '{' || (SELECT string_agg(a.value, ',') FROM jsonb_array_elements_text(o.value) a) || '}'
        ELSE o.value #>> '{}' END
    FROM jsonb_each((
            SELECT to_jsonb(d) FROM (SELECT '{*.*}'::text[] AS tables, '{insert,update,delete,truncate}'::text[] AS event_types,
                NULL::text AS filter, NULL::text[] AS changed, NULL::text[] AS columns, NULL::text[] AS exclude_columns,
                NULL::text AS transform, NULL::text AS route, 'pgwh' AS format, '{}'::jsonb AS headers, 1 AS batch_size,
                interval '0' AS batch_wait, 'key' AS ordering, NULL::text[] AS key_columns, interval '15 s' AS timeout,
                16 AS max_in_flight, NULL::int AS rate_limit,
                '{5 s,5 min,30 min,2 h,5 h,10 h,14 h,20 h,24 h}'::interval[] AS retry_schedule, NULL::interval AS retention,
                NULL::text AS compress, 'any' AS origin) d)) d
        JOIN jsonb_each($1::jsonb) o ON o.key = d.key JOIN jsonb_each($2::jsonb) n ON n.key = d.key
    WHERE o.value <> n.value AND n.value = d.value
    ORDER BY o.key";

impl Before {
    /// The subscription of that name, if there is one.
    pub fn of(name: &str) -> Result<Before, Error> {
        settings(name).map(Before)
    }

    /// Whether the subscription is a new one.
    pub fn is_none(&self) -> bool {
        self.0.is_none()
    }

    /// Says what subscribing again has changed.
    pub fn report(self, name: &str) -> Result<(), Error> {
        let (Some(before), Some(after)) = (self.0, settings(name)?) else { return Ok(()) };
        let quoted = name.replace('\'', "''");
        let changed = with_plain_names(|| {
            Ok(Spi::connect(|client| {
                let arguments = [encoding::argument(before.as_str()), encoding::argument(after.as_str())];
                let rows = client.select(BACK_TO_DEFAULT, None, &arguments)?;
                rows.map(|row| Ok((row.text(1)?.unwrap_or_default(), row.text(2)?.unwrap_or_default())))
                    .collect::<Result<Vec<_>, pgrx::spi::Error>>()
            })?)
        })?;
        if !changed.is_empty() {
            let names: Vec<&str> = changed.iter().map(|(setting, _)| setting.as_str()).collect();
            let values: Vec<String> =
                changed.iter().map(|(setting, value)| format!("{setting} was {value}")).collect();
            Notice::new(format!(
                "settings of subscription \"{name}\" go back to their defaults: {}",
                names.join(", ")
            ))
            .detail(format!("Before, {}.", values.join("; ")))
            .hint("Subscribing again sets what is left out to its default; an UPDATE of pgwh.subscriptions changes single settings.")
            .report();
        }
        let member = |json: &str, name: &str| {
            serde_json::from_str::<serde_json::Value>(json).ok().and_then(|json| json.get(name).cloned())
        };
        let is =
            |json: &str, name: &str| member(json, name).and_then(|value| value.as_bool()).unwrap_or_default();
        if !is(&before, "enabled") && is(&after, "enabled") {
            let reason =
                member(&before, "disabled_reason").and_then(|reason| Some(reason.as_str()?.to_owned()));
            let reason = reason.unwrap_or_else(|| "it was set so".to_owned());
            Notice::new(format!("subscription \"{name}\" was disabled and is enabled again"))
                .detail(format!("It was disabled for this reason: {reason}."))
                .hint("To leave it disabled: enabled => false")
                .report();
        }
        if !is(&before, "armed") && is(&after, "armed") {
            Notice::new(format!("subscription \"{name}\" was held and sends from this database now"))
                .detail("It was made or armed elsewhere.")
                .report();
        }
        if is(&after, "paused") {
            Notice::new(format!("subscription \"{name}\" is still paused"))
                .detail("Changes are kept for it, and nothing is sent.")
                .hint(format!("To send them: SELECT pgwh.resume('{quoted}');"))
                .report();
        }
        Ok(())
    }
}

fn settings(name: &str) -> Result<Option<String>, Error> {
    with_plain_names(|| {
        Ok(Spi::connect(|client| {
            let rows = client.select(SETTINGS, Some(1), &[encoding::argument(name)])?;
            if rows.is_empty() { Ok(None) } else { rows.first().get_one::<Text>() }
        })?
        .map(String::from))
    })
}
