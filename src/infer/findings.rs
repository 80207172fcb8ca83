//! Everything that was found, as JSON for programs.

use serde_json::{Map, Value, json};

use super::Origin;
use super::drift::Drift;
use super::profile::{Key, Profile};
use super::proposal::{Proposal, ProposedColumn};
use super::section::Reading;
use super::unique::Uniqueness;

/// What was found in the records, and the section that is made of it.
pub fn findings(profile: &Profile, proposal: &Proposal, reading: Reading<'_>, section: &str) -> Value {
    let name = |at: &usize| proposal.columns[*at].name.as_str();
    let names = |columns: &[usize]| columns.iter().map(name).collect::<Vec<_>>();
    let repeated = match &proposal.key.uniqueness {
        Uniqueness::Repeated(first, second) => {
            json!([first, second].map(|number| place(profile.origin(*number), reading)))
        }
        Uniqueness::Proven(_) | Uniqueness::Unknown => Value::Null,
    };
    let distinct = proposal.distinct.iter().map(|(count, at)| (count.clone(), json!(name(at)))).collect::<Map<_, _>>();
    let unloadable = profile.unloadable.iter().map(|fault| {
        json!({ "reason": fault.reason.as_str(), "records": fault.count, "first": place(fault.first, reading), "detail": fault.detail })
    });
    json!({
        "dataset": proposal.name,
        "files": reading.sources,
        "records": profile.records,
        "sample": reading.is_sample,
        "unloadable": unloadable.collect::<Vec<_>>(),
        "key": {
            "columns": names(&proposal.key.columns),
            "proven": matches!(proposal.key.uniqueness, Uniqueness::Proven(_)),
            "repeated": repeated,
        },
        "day": proposal.day.as_ref().map(name),
        "other_days": names(&proposal.other_days),
        "columns": proposal.columns.iter().map(|found| column(profile, found, reading)).collect::<Vec<_>>(),
        "keys_without_column": proposal.left.keys,
        "dimensions": names(&proposal.dimensions),
        "distinct": distinct,
        "section": section,
    })
}

fn column(profile: &Profile, column: &ProposedColumn, reading: Reading<'_>) -> Value {
    let Key { evidence, missing, .. } = &profile.keys[column.key];
    let kinds = evidence.kinds.iter().map(|sighting| {
        json!({
            "kind": sighting.kind.name(),
            "values": sighting.count,
            "first": place(sighting.first, reading),
            "sample": sighting.sample,
        })
    });
    let nearly = evidence.nearly().map(|(column_type, exception)| {
        let exceptions = evidence.values() - evidence.fitting(column_type);
        json!({
            "type": column_type.name(),
            "exceptions": exceptions,
            "first": place(exception.first, reading),
            "sample": exception.sample,
        })
    });
    json!({
        "name": column.name,
        "from": column.place.to_string(),
        "type": column.column_type.name(),
        "required": column.required,
        "values": evidence.values(),
        "nulls": evidence.nulls,
        "missing": missing.filter(|_| evidence.values() < profile.loadable()).map(|origin| place(origin, reading)),
        "distinct": evidence.distinct.count().filter(|_| !evidence.has_nested()),
        "quoted": evidence.quoted,
        "longest_bytes": evidence.longest,
        "kinds": kinds.collect::<Vec<_>>(),
        "nearly": nearly,
    })
}

/// How the records differ from a definition.
pub fn drift(profile: &Profile, dataset: &str, drift: &Drift, reading: Reading<'_>) -> Value {
    let first = |origin: Option<Origin>| origin.map(|origin| place(origin, reading));
    let unknown =
        drift.unknown.iter().map(|key| json!({ "from": key.place.to_string(), "records": key.records, "first": first(key.first) }));
    let rejected = drift.rejected.iter().map(|rejected| {
        json!({
            "reason": rejected.reason.as_str(),
            "column": rejected.column,
            "records": rejected.records,
            "first": place(rejected.first, reading),
            "detail": rejected.detail,
        })
    });
    let wider = drift.wider.iter().map(|wider| {
        json!({
            "column": wider.column,
            "type": wider.column_type.name(),
            "narrowest": wider.narrowest.name(),
            "values": wider.values,
            "first": first(wider.first),
        })
    });
    json!({
        "dataset": dataset,
        "files": reading.sources,
        "records": profile.records,
        "sample": reading.is_sample,
        "drift": !drift.is_empty(),
        "unknown_keys": unknown.collect::<Vec<_>>(),
        "rejected": rejected.collect::<Vec<_>>(),
        "wider_types": wider.collect::<Vec<_>>(),
    })
}

fn place(origin: Origin, reading: Reading<'_>) -> Value {
    json!({ "file": reading.sources.get(origin.file), "record": origin.ordinal })
}
