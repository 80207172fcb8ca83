//! Any text becomes the rows and rejects that serde_json and the limits say.

use proptest::test_runner::TestCaseResult;
use serde_json::value::RawValue;

use super::judge::judge;
use super::*;
use crate::fuzz::records::{RECORDS, records};
use crate::record::split::{SplitError, Splitter};

/// Columns of all types, none of them required.
const ANY: &str = "t:text i:bigint d:double n:numeric b:boolean date:date at:timestamp z:timestamptz u:uuid j:jsonb";
/// Columns that stand inside of other values.
const INSIDE: &str = "t:jsonb x=/o/x:jsonb y=/o/y/z:jsonb first=/l/0:jsonb second=/l/1/k:jsonb";

#[test]
fn any_text_becomes_what_serde_json_says() {
    let (any, required) = (dataset(ANY), dataset("t:text! i:bigint!"));
    RECORDS.hold(records(), |text| {
        let (found, failed) = read(&any, text)?;
        read(&required, text)?;
        whole_text(text, &found, failed)
    });
}

/// A record, and the reason if it was rejected.
type Found = (Vec<u8>, Option<RejectReason>);

/// Splits and parses the text. Each record becomes what the judge says.
fn read(dataset: &Arc<Dataset>, text: &[u8]) -> Result<(Vec<Found>, bool), TestCaseError> {
    let mut splitter = Splitter::new(text);
    let mut parser = Parser::new(Arc::clone(dataset));
    let mut found = Vec::new();
    let failed = loop {
        let chunk = match splitter.next_chunk() {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break false,
            Err(SplitError::Boundary { .. }) => break true,
            Err(SplitError::Io(error)) => return Err(TestCaseError::fail(error.to_string())),
        };
        let mut rows = Rows::default();
        let parsed = parser.parse(&chunk, &DayRange::ALL, &mut rows);
        prop_assert_eq!(parsed.rows + parsed.rejects.len() as u64, chunk.records());
        let ChunkBody::Records { text, spans, .. } = &chunk.body else {
            found.extend(parsed.rejects.into_iter().map(|reject| (reject.record, Some(reject.reason))));
            continue;
        };
        let (mut rows, mut rejects) = (rows.0.into_iter(), parsed.rejects.into_iter().peekable());
        for (ordinal, span) in (chunk.first_ordinal..).zip(spans) {
            let record = &text[span.start as usize..span.end as usize];
            let reject = rejects.next_if(|reject| reject.ordinal == ordinal);
            let outcome = match &reject {
                Some(reject) => Err(reject.reason),
                None => rows.next().ok_or(RejectReason::Constraint),
            };
            prop_assert_eq!(outcome, judge(dataset, record), "{}", record.escape_ascii());
            if let Some(reject) = &reject {
                prop_assert_eq!(&reject.record, record);
                prop_assert_eq!(reject.byte_offset, chunk.first_byte_offset + u64::from(span.start));
                prop_assert!(!reject.detail.contains(char::is_control), "{}", reject.detail);
            }
            found.push((record.to_vec(), reject.map(|reject| reject.reason)));
        }
        prop_assert!(rejects.next().is_none() && rows.next().is_none(), "nothing comes from nowhere");
    };
    Ok((found, failed))
}

/// The records are those of serde_json if that accepts the text as a whole; else something is rejected, or the file fails.
fn whole_text(text: &[u8], found: &[Found], failed: bool) -> TestCaseResult {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let rejected =
        |reasons: &[RejectReason]| found.iter().any(|(_, reason)| reason.is_some_and(|reason| reasons.contains(&reason)));
    let Ok(text) = std::str::from_utf8(text) else {
        prop_assert!(failed || rejected(&[RejectReason::InvalidUtf8]));
        return Ok(());
    };
    let sources = |values: Vec<&RawValue>| values.iter().map(|value| value.get().as_bytes().to_vec()).collect::<Vec<_>>();
    let expected = match text.trim_start_matches([' ', '\t', '\r', '\n']).as_bytes().first() {
        None => Some(Vec::new()),
        Some(b'[') => serde_json::from_str::<Vec<&RawValue>>(text).ok().map(sources),
        Some(b'{') => {
            let values = serde_json::Deserializer::from_str(text).into_iter::<&RawValue>();
            values.collect::<Result<Vec<_>, _>>().ok().map(sources)
        }
        Some(_) => None,
    };
    match expected {
        Some(expected) => {
            prop_assert!(!failed, "serde_json accepts it");
            prop_assert_eq!(found.iter().map(|(record, _)| record.clone()).collect::<Vec<_>>(), expected);
        }
        None => prop_assert!(failed || rejected(&[RejectReason::InvalidJson, RejectReason::TooDeep]), "serde_json refuses it"),
    }
    Ok(())
}

#[test]
fn what_columns_take_from_inside_and_what_is_left_is_the_record() {
    let inside = dataset(INSIDE);
    RECORDS.hold(records(), |text| {
        let mut splitter = Splitter::new(text);
        while let Ok(Some(chunk)) = splitter.next_chunk() {
            let ChunkBody::Records { text, spans, .. } = &chunk.body else { continue };
            for span in spans {
                let record = &text[span.start as usize..span.end as usize];
                let mut kept = Kept::default();
                Parser::new(Arc::clone(&inside)).parse(&super::chunk(&[record]), &DayRange::ALL, &mut kept);
                // What serde_json cannot hold as a value is judged elsewhere.
                if let (Some(values), Ok(original)) = (kept.0, serde_json::from_slice::<serde_json::Value>(record)) {
                    prop_assert_eq!(restored(&inside, &values, &original), original);
                }
            }
        }
        Ok(())
    });
}

/// The values of the last row, if serde_json can hold them.
#[derive(Default)]
struct Kept(Option<Vec<serde_json::Value>>);

impl RowSink for Kept {
    fn push(&mut self, values: &[Value<'_>]) {
        let parsed = |value: &Value<'_>| match value {
            Value::Json(text) => serde_json::from_str(text),
            _ => Ok(serde_json::Value::Null),
        };
        self.0 = values.iter().map(parsed).collect::<Result<_, _>>().ok();
    }
}

/// Puts the values of the columns back to where they were taken from.
fn restored(dataset: &Dataset, values: &[serde_json::Value], original: &serde_json::Value) -> serde_json::Value {
    use serde_json::{Value as Json, json};
    let mut record = values.last().filter(|extra| !extra.is_null()).cloned().unwrap_or(json!({}));
    for (column, value) in dataset.columns.iter().zip(values) {
        let (mut from, mut to) = (original, &mut record);
        for token in &column.from.0 {
            let next = match from {
                Json::Object(members) => members.get(token),
                Json::Array(elements) => token.parse::<usize>().ok().and_then(|index| elements.get(index)),
                _ => None,
            };
            let Some(next) = next else { break };
            to = match from {
                Json::Array(elements) => {
                    if to.is_null() {
                        *to = json!(vec![Json::Null; elements.len()]);
                    }
                    &mut to[token.parse::<usize>().expect("it was found there")]
                }
                _ => {
                    if to.is_null() {
                        *to = json!({});
                    }
                    &mut to[token]
                }
            };
            from = next;
        }
        let pointer = column.from.0.iter().map(|token| format!("/{token}")).collect::<String>();
        if original.pointer(&pointer).is_some() {
            *to = value.clone();
        }
    }
    record
}
