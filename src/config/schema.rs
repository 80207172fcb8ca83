//! The JSON Schema of `dataloader.toml`, for editors. A test compares it with what the parser accepts.

use serde_json::{Map, Value, json};

use super::settings::{MAX_QUEUES, StreamSettings};
use crate::dataset::{ColumnType, Repeats, StreamMode};

/// The schema, in draft 7, which the editors' TOML extensions understand.
pub fn schema() -> Value {
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "dataloader.toml",
        "description": "What dataloader loads. Flags and environment variables win over this file.",
        "type": "object",
        "additionalProperties": false,
        "required": ["datasets"],
        "properties": settings(),
        "definitions": { "dataset": dataset(), "model": model(), "column": column(), "type": column_type() },
    })
}

/// The settings outside of any section, and the sections.
fn settings() -> Value {
    let windows: Vec<u32> = (0..=11).map(|power| 1 << power).collect();
    json!({
        "data_dir": path("Holds the datasets' directories: --data-dir, DATALOADER_DATA_DIR", Some("raw_data")),
        "inbox": path("The stream watches <inbox>/<dataset>/: --inbox, DATALOADER_INBOX", Some("inbox")),
        "stage_dir": path("A volume shared with PostgreSQL: --stage-dir, DATALOADER_STAGE_DIR", None),
        "database": {
            "description": "sqlite://FILE or postgres://USER:PASSWORD@HOST:PORT/NAME: --database, DATABASE_URL",
            "type": "string", "pattern": "^(sqlite:|postgres://|postgresql://)", "default": "sqlite://dataloader.db",
        },
        "transport": choice(
            "How records travel from the reader to the parsers: --transport, DATALOADER_TRANSPORT", &["inproc", "amqp"], "inproc"),
        "role": choice("With amqp, what this process runs: --role, DATALOADER_ROLE", &["all", "producer", "consumer"], "all"),
        "amqp_url": {
            "description": "The RabbitMQ broker: AMQP_URL",
            "type": "string", "pattern": "^amqps?://", "default": "amqp://guest:guest@127.0.0.1:5672/%2f",
        },
        "queue_prefix": {
            "description": "Exchange and queues begin with it: --queue-prefix, DATALOADER_QUEUE_PREFIX",
            "type": "string", "pattern": "^(?!amq\\.)[A-Za-z0-9_.:-]{1,128}$", "default": "dataloader",
        },
        "mode": choice("The menu of `dataloader menu`: --mode, DATALOADER_MODE", &["batch", "stream"], "batch"),
        "http": {
            "description": "Where the page is served, as PORT, :PORT or HOST:PORT: --http, DATALOADER_HTTP",
            "type": "string", "minLength": 1,
        },
        "zstd_window_mib": {
            "description": "A zstd file with a larger window fails: reading takes as much memory",
            "enum": windows, "default": 64,
        },
        "follow_links": {
            "description": "Directories of the inbox may be symbolic links; otherwise one is an error",
            "type": "boolean", "default": false,
        },
        "stream": {
            "description": "How the stream batches. It affects speed and latency, never what is loaded",
            "type": "object", "additionalProperties": false, "properties": stream(),
        },
        "amqp": {
            "description": "With RabbitMQ: how the messages are spread",
            "type": "object", "additionalProperties": false,
            "properties": { "queues": {
                "description": "Each dataset has so many queues, each with a leader of its own",
                "type": "integer", "minimum": 1, "maximum": MAX_QUEUES, "default": 1,
            } },
        },
        "datasets": {
            "description": "What is loaded, by name",
            "type": "object", "minProperties": 1, "propertyNames": { "pattern": NAME },
            "additionalProperties": { "$ref": "#/definitions/dataset" },
        },
    })
}

/// A name of a dataset or a column.
const NAME: &str = "^[A-Za-z_][A-Za-z0-9_]{0,62}$";

fn stream() -> Value {
    let defaults = StreamSettings::default();
    let settings = StreamSettings::BOUNDS.into_iter().map(|(name, bounds)| {
        let millis = |duration: std::time::Duration| json!(duration.as_millis().to_string().parse::<u64>().ok());
        let (about, default) = match name {
            "batch_rows" => ("A batch is committed when it has this many rows", json!(defaults.batch_rows)),
            "batch_bytes" => ("Or this many bytes; at most in_flight_bytes", json!(defaults.batch_bytes)),
            "batch_interval_ms" => ("Or when no more has come for this long", millis(defaults.batch_interval)),
            "model_delay_ms" => ("Changed days are modelled this long after a commit, together", millis(defaults.model_delay)),
            "in_flight_bytes" => ("At most this much is read ahead of the database", json!(defaults.in_flight_bytes)),
            // The default is the number of this machine's cores, which is not the reader's.
            "parsers" => ("Parser threads; default: one for each core", Value::Null),
            "writers" => ("Connections that write side by side; on SQLite, one", json!(defaults.writers)),
            "rescan_interval_ms" => {
                ("The inbox is listed this often, should file events get lost", millis(defaults.rescan_interval))
            }
            "settle_ms" => ("Where no event reports a file's end, its size must be still for this long", millis(defaults.settle)),
            "stall_ms" => ("A stage is stalled that has work and makes no progress for so long", millis(defaults.stall)),
            "database_timeout_ms" => ("A statement that takes longer is repeated", millis(defaults.database_timeout)),
            "drain_timeout_ms" => {
                ("After a signal the run ends when nothing has moved for so long", millis(defaults.drain_timeout))
            }
            _ => ("", Value::Null),
        };
        let mut setting = json!({ "description": about, "type": "integer", "minimum": bounds.start(), "maximum": bounds.end() });
        if !default.is_null() {
            setting["default"] = default;
        }
        (name.to_owned(), setting)
    });
    Value::Object(settings.collect::<Map<_, _>>())
}

fn dataset() -> Value {
    json!({
        "type": "object", "additionalProperties": false, "required": ["key", "columns"],
        "properties": {
            "dir": path("In data_dir; default: the dataset's name", None),
            "key": names("What makes two records the same", 1),
            "day": { "description": "A required date or time; --date filters on it, the model groups by its UTC date", "type": "string" },
            "stream": choice(
                "What a dropped record does to the rows of its key", &StreamMode::ALL.map(StreamMode::name), StreamMode::default().name()),
            "repeats": choice(
                "What becomes of a dropped file whose content is there already", &Repeats::ALL.map(Repeats::name), Repeats::Load.name()),
            "menu": { "description": "The menu and `drop` are about this dataset", "type": "boolean", "default": false },
            "columns": {
                "description": "In this order; a type, or { type, required, from }",
                "type": "object", "minProperties": 1, "maxProperties": 1000, "propertyNames": { "pattern": NAME },
                "additionalProperties": { "anyOf": [{ "$ref": "#/definitions/type" }, { "$ref": "#/definitions/column" }] },
            },
            "model": { "$ref": "#/definitions/model" },
        },
    })
}

fn column() -> Value {
    json!({
        "type": "object", "additionalProperties": false, "required": ["type"],
        "properties": {
            "type": { "$ref": "#/definitions/type" },
            "required": { "description": "A record without it is rejected", "type": "boolean", "default": false },
            "from": {
                "description": "Where the value stands: another key, or a JSON Pointer (RFC 6901) that begins with /",
                "type": "string", "pattern": r"^([^/][\s\S]*)?$|^(/([^~/]|~[01])*)+$",
            },
        },
    })
}

fn column_type() -> Value {
    json!({ "description": "The type of a column", "enum": ColumnType::ALL.map(ColumnType::name) })
}

fn model() -> Value {
    json!({
        "description": "What is counted per day besides the totals; needs `day`",
        "type": "object", "additionalProperties": false,
        "properties": {
            "dimensions": names("Columns that get a table of their own, with the totals of each of their values", 0),
            "distinct": {
                "description": "Counts of distinct non-null values: the count's name = the column",
                "type": "object", "propertyNames": { "pattern": NAME }, "additionalProperties": { "type": "string" },
            },
            "fact_view": {
                "description": "A view of all totals: dimension = the last word of its column; empty: no view",
                "type": "object", "additionalProperties": { "type": "string", "pattern": NAME },
            },
        },
    })
}

fn path(about: &str, default: Option<&str>) -> Value {
    let mut setting = json!({ "description": about, "type": "string", "minLength": 1 });
    if let Some(default) = default {
        setting["default"] = json!(default);
    }
    setting
}

fn choice(about: &str, values: &[&str], default: &str) -> Value {
    json!({ "description": about, "enum": values, "default": default })
}

fn names(about: &str, at_least: usize) -> Value {
    json!({ "description": about, "type": "array", "minItems": at_least, "uniqueItems": true, "items": { "type": "string" } })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::{BUILT_IN, Config, ConfigSource, Environment, Settings};
    use super::*;

    /// The settings that the parser knows where the text has `{}`, by what it says of one that it does not know.
    fn known_to_the_parser(text: &str) -> BTreeSet<String> {
        let text = text.replace("{}", "no_such_setting = 1");
        let error = Config::resolve(ConfigSource::BuiltIn, text, Settings::default(), &Environment(&|_| None)).unwrap_err();
        let (_, list) = error.hint_text().unwrap().rsplit_once("ettings are: ").unwrap();
        list.split(", ").map(str::to_owned).collect()
    }

    #[test]
    fn the_schema_has_exactly_the_settings_of_the_parser() {
        let dataset = "[datasets.x]\nkey = [\"a\"]\n";
        for (place, text) in [
            ("/properties", "{}\n".to_owned()),
            ("/properties/stream/properties", "[stream]\n{}\n".to_owned()),
            ("/definitions/dataset/properties", format!("{dataset}{{}}\n")),
            ("/definitions/column/properties", format!("{dataset}[datasets.x.columns.a]\ntype = \"text\"\n{{}}\n")),
            (
                "/definitions/model/properties",
                format!(
                    "{dataset}day = \"d\"\n[datasets.x.columns]\na = \"text\"\nd = {{ type = \"date\", required = true }}\n[datasets.x.model]\n{{}}\n"
                ),
            ),
        ] {
            let text = text.replace("{{}}", "{}");
            let schema = schema();
            let listed = schema.pointer(place).and_then(Value::as_object).unwrap().keys().cloned().collect::<BTreeSet<_>>();
            assert_eq!(listed, known_to_the_parser(&text), "{place}: src/config/schema.rs and the parser differ");
        }
        assert!(!schema().to_string().contains("\"description\":\"\""), "every setting says what it is");
    }

    /// Why a value does not fit, by the keywords that the schema uses; an unknown keyword fails the test.
    fn misfit(root: &Value, schema: &Value, value: &Value) -> Option<String> {
        let length = |n: &Value| n.as_u64().and_then(|n| usize::try_from(n).ok()).unwrap();
        for (keyword, wanted) in schema.as_object().unwrap() {
            let fits = match keyword.as_str() {
                "$schema" | "title" | "description" | "default" | "definitions" => true,
                "$ref" => {
                    let target = root.pointer(wanted.as_str().unwrap().trim_start_matches('#')).unwrap();
                    misfit(root, target, value).is_none()
                }
                "type" => match wanted.as_str().unwrap() {
                    "object" => value.is_object(),
                    "array" => value.is_array(),
                    "string" => value.is_string(),
                    "boolean" => value.is_boolean(),
                    "integer" => value.is_i64(),
                    other => panic!("{other}"),
                },
                "enum" => wanted.as_array().unwrap().contains(value),
                "anyOf" => wanted.as_array().unwrap().iter().any(|schema| misfit(root, schema, value).is_none()),
                "required" => wanted.as_array().unwrap().iter().all(|key| value.get(key.as_str().unwrap()).is_some()),
                "minimum" => value.as_i64() >= wanted.as_i64(),
                "maximum" => value.as_i64() <= wanted.as_i64(),
                "minLength" => value.as_str().is_none_or(|text| text.len() >= length(wanted)),
                "minItems" => value.as_array().unwrap().len() >= length(wanted),
                "minProperties" => value.as_object().unwrap().len() >= length(wanted),
                "maxProperties" => value.as_object().unwrap().len() <= length(wanted),
                "items" => value.as_array().unwrap().iter().all(|item| misfit(root, wanted, item).is_none()),
                "properties" => value
                    .as_object()
                    .unwrap()
                    .iter()
                    .all(|(key, value)| wanted.get(key).is_none_or(|schema| misfit(root, schema, value).is_none())),
                "additionalProperties" => value.as_object().unwrap().iter().all(|(key, value)| {
                    let is_named = schema.get("properties").is_some_and(|named| named.get(key).is_some());
                    is_named || (wanted.is_object() && misfit(root, wanted, value).is_none())
                }),
                // The parser's own tests are about these; regular expressions would need another crate.
                "pattern" | "propertyNames" | "uniqueItems" => true,
                other => panic!("the test does not know the keyword {other}"),
            };
            if !fits {
                return Some(format!("{keyword} {wanted}: {value}"));
            }
        }
        None
    }

    #[test]
    fn the_shipped_file_fits_the_schema_with_all_its_settings_on() {
        let schema = schema();
        let fits = |text: &str| misfit(&schema, &schema, &toml::from_str::<Value>(text).unwrap());
        assert_eq!(fits(BUILT_IN), None);
        let is_setting = |line: &str| line.starts_with('[') || line.split_once(" = ").is_some_and(|(name, _)| !name.contains(' '));
        let all_on: String = BUILT_IN
            .lines()
            .map(|line| line.strip_prefix("# ").filter(|line| is_setting(line)).unwrap_or(line).to_owned() + "\n")
            .collect();
        assert!(all_on.contains("\nwriters = 2") && all_on.contains("\namqp_url"), "{all_on}");
        assert_eq!(fits(&all_on), None);
        for wrong in ["x = 1", "role = \"none\"", "zstd_window_mib = 3", "stream = { writers = 0 }", "datasets.y = { key = [] }"] {
            assert!(fits(&format!("{wrong}\n{BUILT_IN}")).is_some(), "{wrong}");
        }
    }
}
