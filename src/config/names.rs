//! Makes identifiers from keys.
//!
//! A key that is an identifier keeps its name. Any other becomes lower-case words of ASCII letters and digits with `_` between them. Names
//! that are taken get a number. The same keys get the same names, in whatever order the records have them.

use std::collections::HashSet;

use super::datasets::{MAX_NAME_BYTES, is_identifier, is_reserved_column, is_reserved_dataset};
use crate::dataset::Place;

/// With it a dataset's longest generated table is within the limit of names.
const MAX_DATASET_BYTES: usize = 45;

/// The names of columns for these places, one for each.
pub fn column_names(places: &[&Place]) -> Vec<String> {
    let wanted: Vec<String> = places.iter().map(|place| column_name(place)).collect();
    let keeps = |at: &usize| matches!(&*places[*at].0, [key] if *key == wanted[*at]);
    let mut order: Vec<usize> = (0..places.len()).collect();
    // Of keys that differ only in case, the one in lower case keeps its name.
    order.sort_by_key(|at| (!keeps(at), wanted[*at].contains(|c: char| c.is_ascii_uppercase()), &places[*at].0));
    let mut taken = Taken::default();
    let mut names = vec![String::new(); places.len()];
    for at in order {
        names[at] = taken.claim(&wanted[at], is_reserved_column);
    }
    names
}

/// The name of a column for this place beside those of `others`.
pub fn another_column_name<'a>(place: &Place, others: impl Iterator<Item = &'a str>) -> String {
    let mut taken = Taken(others.map(str::to_ascii_lowercase).collect());
    taken.claim(&column_name(place), is_reserved_column)
}

fn column_name(place: &Place) -> String {
    match &*place.0 {
        [key] if is_identifier(key) => key.clone(),
        tokens => shortened(&identifier(&tokens.join(" "), "column"), MAX_NAME_BYTES).to_owned(),
    }
}

/// A name for a dataset of what a file or directory of that name holds.
pub fn dataset_name(text: &str) -> String {
    let words = identifier(text, "records");
    // A number after it mends `loads` and `x_delta`, something before it `fact_x` and `2020`.
    let name = match words.strip_prefix('_') {
        Some(digits) => format!("records_{digits}"),
        None if words.starts_with("fact_") => format!("records_{words}"),
        None => words,
    };
    let wanted = shortened(&name, MAX_DATASET_BYTES - "_2".len());
    Taken::default().claim(wanted, is_reserved_dataset)
}

/// Whether a dataset can have that name, and its generated tables theirs.
pub fn is_dataset_name(name: &str) -> bool {
    is_identifier(name) && !is_reserved_dataset(name) && name.len() <= MAX_DATASET_BYTES
}

/// Names that are taken already. They must differ in more than case.
#[derive(Debug, Default)]
pub struct Taken(HashSet<String>);

impl Taken {
    /// Whether nothing has that name.
    pub fn is_free(&self, name: &str) -> bool {
        !self.0.contains(&name.to_ascii_lowercase())
    }

    /// The name, or if it is taken or reserved the name with the first number that is free.
    pub fn claim(&mut self, wanted: &str, is_reserved: impl Fn(&str) -> bool) -> String {
        let numbered = (2..).map(|number: u32| {
            let suffix = format!("_{number}");
            format!("{}{suffix}", shortened(wanted, MAX_NAME_BYTES - suffix.len()))
        });
        let free = |name: &String| !is_reserved(name) && self.is_free(name);
        let name = std::iter::once(wanted.to_owned()).chain(numbered).find(free).expect("there are more numbers than names");
        self.0.insert(name.to_ascii_lowercase());
        name
    }
}

/// The words of a text, in lower case, joined by `_`; `otherwise` if there are none.
fn identifier(text: &str, otherwise: &str) -> String {
    let mut name = String::new();
    let mut previous_is_lower = false;
    for character in text.chars() {
        let ascii = transliterated(character);
        let is_word = ascii.starts_with(|c: char| c.is_ascii_alphanumeric());
        let begins_word = character.is_uppercase() && previous_is_lower;
        if (!is_word || begins_word) && !name.is_empty() && !name.ends_with('_') {
            name.push('_');
        }
        if is_word {
            name.push_str(&ascii.to_ascii_lowercase());
        }
        previous_is_lower = character.is_lowercase();
    }
    let name = name.trim_end_matches('_');
    match name.chars().next() {
        None => otherwise.to_owned(),
        Some(first) if first.is_ascii_digit() => format!("_{name}"),
        Some(_) => name.to_owned(),
    }
}

/// The letter without its marks; other characters as they are.
fn transliterated(character: char) -> String {
    let plain = match character {
        'À'..='Å' | 'à'..='å' | 'Ā'..='ą' => "a",
        'Æ' | 'æ' => "ae",
        'Ç' | 'ç' | 'Ć'..='č' => "c",
        'Ð' | 'ð' | 'Ď'..='đ' => "d",
        'È'..='Ë' | 'è'..='ë' | 'Ē'..='ě' => "e",
        'Ĝ'..='ģ' => "g",
        'Ì'..='Ï' | 'ì'..='ï' | 'Ĩ'..='ı' => "i",
        'Ĺ'..='ł' => "l",
        'Ñ' | 'ñ' | 'Ń'..='ň' => "n",
        'Ò'..='Ö' | 'Ø' | 'ò'..='ö' | 'ø' | 'Ō'..='ő' => "o",
        'Œ' | 'œ' => "oe",
        'Ŕ'..='ř' => "r",
        'Ś'..='š' => "s",
        'ß' => "ss",
        'Ţ'..='ŧ' => "t",
        'Ù'..='Ü' | 'ù'..='ü' | 'Ũ'..='ų' => "u",
        'Ý' | 'ý' | 'ÿ' => "y",
        'Ź'..='ž' => "z",
        other => return other.to_string(),
    };
    plain.to_owned()
}

/// The first bytes of an ASCII text.
fn shortened(name: &str, bytes: usize) -> &str {
    name.get(..bytes).unwrap_or(name).trim_end_matches('_')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(keys: &[&str]) -> Vec<String> {
        let places: Vec<Place> = keys.iter().map(|key| Place::key(key)).collect();
        column_names(&places.iter().collect::<Vec<_>>())
    }

    #[test]
    fn identifiers_keep_their_names_and_other_keys_become_words() {
        for (key, name) in [
            ("id", "id"),
            ("createdAt", "createdAt"),
            ("_x", "_x"),
            ("Created At", "created_at"),
            ("user.firstName", "user_first_name"),
            ("Größe (cm)", "grosse_cm"),
            ("2020", "_2020"),
            ("", "column"),
            ("🎉", "column"),
            ("東京", "column"),
            ("a\n\"b\"", "a_b"),
            ("$ref", "ref"),
            ("_extra", "_extra_2"),
            ("CTID", "CTID_2"),
            ("select", "select"),
        ] {
            assert_eq!(names(&[key]), [name], "{key:?}");
        }
        let place = Place(vec!["actor".to_owned(), "loginName".to_owned()]);
        assert_eq!(column_names(&[&place]), ["actor_login_name"]);
        assert_eq!(names(&[&"x".repeat(300)]), ["x".repeat(63)]);
    }

    #[test]
    fn collisions_are_numbered_whatever_the_order() {
        assert_eq!(names(&["ID", "id", "Id"]), ["ID_2", "id", "Id_3"]);
        assert_eq!(names(&["Id", "ID", "id"]), ["Id_3", "ID_2", "id"]);
        assert_eq!(names(&["a b", "a-b", "a_b"]), ["a_b_2", "a_b_3", "a_b"]);
        assert_eq!(names(&["", "🎉"]), ["column", "column_2"]);
        let long = ["x".repeat(300), "x".repeat(301)];
        assert_eq!(names(&[&long[0], &long[1]])[1], format!("{}_2", "x".repeat(61)));
    }

    #[test]
    fn datasets_never_have_a_name_of_the_program() {
        for (text, name) in [
            ("orders", "orders"),
            ("Orders 2020", "orders_2020"),
            ("loads", "loads_2"),
            ("x_delta", "x_delta_2"),
            ("_x", "x"),
            ("fact_a", "records_fact_a"),
            ("2020-05", "records_2020_05"),
            ("", "records"),
            (&"y".repeat(300), &"y".repeat(43)),
        ] {
            assert_eq!(dataset_name(text), name, "{text}");
            assert!(is_dataset_name(name), "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_keys_get_valid_names_that_differ_in_more_than_case(keys in proptest::collection::hash_set(any::<String>(), 0..20)) {
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            let names = names(&keys);
            prop_assert!(names.iter().all(|name| is_identifier(name) && !is_reserved_column(name)), "{names:?}");
            let distinct: HashSet<String> = names.iter().map(|name| name.to_ascii_lowercase()).collect();
            prop_assert_eq!(distinct.len(), keys.len());
        }
    }
}
