//! The line that makes a key of the records a column.

use super::datasets::is_free_name;
use crate::dataset::{ColumnType, Dataset, Place};

/// The line for `[datasets.NAME.columns]` that takes the value of a place, as `from` names it. `None` if a column takes it, or a
/// part of it, already.
pub fn column_line(dataset: &Dataset, place: &str, column_type: ColumnType) -> Option<String> {
    let parsed = Place::parse(place)?;
    if dataset.columns.iter().any(|column| column.from.overlaps(&parsed)) {
        return None;
    }
    let name = column_name(dataset, &parsed);
    let column_type = column_type.name();
    if parsed == Place::key(&name) {
        return Some(format!("{name} = \"{column_type}\""));
    }
    // A string of JSON is one of TOML, but for this character.
    let from = serde_json::Value::from(place).to_string().replace('\u{7f}', "\\u007f");
    Some(format!("{name} = {{ type = \"{column_type}\", from = {from} }}"))
}

/// A name for the column that is free: the key, or the pointer's tokens, as an identifier.
fn column_name(dataset: &Dataset, place: &Place) -> String {
    /// Room for a number within the 63 bytes of a name.
    const LONGEST: usize = 55;
    let letter = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let mut name: String = place.0.join("_").chars().map(letter).take(LONGEST).collect();
    if !name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') || name.chars().all(|c| c == '_') {
        name.insert_str(0, "key_");
    }
    let is_free = |name: &str| is_free_name(name) && dataset.columns.iter().all(|column| !column.name.eq_ignore_ascii_case(name));
    let numbered = (2..).map(|number: usize| format!("{name}_{number}"));
    std::iter::once(name.clone()).chain(numbered).find(|name| is_free(name)).expect("some number is free")
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
            ("ID", Some(r#"ID_2 = { type = "text", from = "ID" }"#)),
            ("Created At", Some(r#"Created_At = { type = "text", from = "Created At" }"#)),
            ("/actor/id", Some(r#"actor_id = { type = "text", from = "/actor/id" }"#)),
            ("/team/name", Some(r#"team_name_2 = { type = "text", from = "/team/name" }"#)),
            ("7\"days", Some(r#"key_7_days = { type = "text", from = "7\"days" }"#)),
            ("ü", Some(r#"key__ = { type = "text", from = "ü" }"#)),
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
