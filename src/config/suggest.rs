//! The lines that make keys of the records columns.

use std::fmt::Write;

use super::names::another_column_name;
use crate::dataset::{ColumnType, Dataset, Place};
use crate::visible::{Form, visible};

/// The line for `[datasets.NAME.columns]` that takes the value of a place, as `from` names it. `None` if a column takes it, or a
/// part of it, already.
pub fn column_line(dataset: &Dataset, place: &str, column_type: ColumnType) -> Option<String> {
    let place = Place::parse(place)?;
    if dataset.columns.iter().any(|column| column.from.overlaps(&place)) {
        return None;
    }
    let name = another_column_name(&place, dataset.columns.iter().map(|column| column.name.as_str()));
    let definition = definition(&name, &place, column_type, false);
    Some(format!("{name} = {definition}"))
}

/// The type of a column, and what else there is to say of it: what stands behind `name = `.
pub fn definition(name: &str, place: &Place, column_type: ColumnType, required: bool) -> String {
    let column_type = column_type.name();
    let required = if required { ", required = true" } else { "" };
    let from = if *place == Place::key(name) { String::new() } else { format!(", from = {}", basic_string(&place.to_string())) };
    if required.is_empty() && from.is_empty() {
        format!("\"{column_type}\"")
    } else {
        format!("{{ type = \"{column_type}\"{required}{from} }}")
    }
}

/// A basic string of TOML. What a terminal would obey is escaped, so that the text can be printed as it is.
pub fn basic_string(text: &str) -> String {
    let mut string = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => string.extend(['\\', character]),
            '\n' => string.push_str("\\n"),
            '\t' => string.push_str("\\t"),
            '\r' => string.push_str("\\r"),
            _ if visible(character.encode_utf8(&mut [0; 4]), Form::Line) != *character.encode_utf8(&mut [0; 4]) => {
                write!(string, "\\u{:04x}", u32::from(character)).expect("a string can always be written to");
            }
            _ => string.push(character),
        }
    }
    string.push('"');
    string
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Column;

    #[test]
    fn the_line_can_be_pasted_as_it_stands() {
        let column = |name: &str, from: &str| Column {
            name: name.to_owned(),
            column_type: ColumnType::Text,
            required: false,
            from: Place::parse(from).unwrap(),
        };
        let columns = vec![column("id", "id"), column("login", "/actor/login"), column("team_name", "team_name")];
        let dataset = Dataset { columns, ..Dataset::without_columns("things") };
        let line = |place: &str| column_line(&dataset, place, ColumnType::Text);
        for (place, expected) in [
            ("plan", Some(r#"plan = "text""#)),
            ("planName", Some(r#"planName = "text""#)),
            ("ID", Some(r#"ID_2 = { type = "text", from = "ID" }"#)),
            ("Created At", Some(r#"created_at = { type = "text", from = "Created At" }"#)),
            ("/actor/id", Some(r#"actor_id = { type = "text", from = "/actor/id" }"#)),
            ("/team/name", Some(r#"team_name_2 = { type = "text", from = "/team/name" }"#)),
            ("7\"days", Some(r#"_7_days = { type = "text", from = "7\"days" }"#)),
            ("\u{7f}", Some(r#"column = { type = "text", from = "\u007f" }"#)),
            ("_load_id", Some(r#"_load_id_2 = { type = "text", from = "_load_id" }"#)),
            ("ctid", Some(r#"ctid_2 = { type = "text", from = "ctid" }"#)),
            ("id", None),
            ("actor", None),
            ("/actor/login/first", None),
        ] {
            assert_eq!(line(place).as_deref(), expected, "{place}");
        }
    }
}
