//! Texts of records: what they consist of.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::Target;

/// Texts of records.
pub const RECORDS: Target = Target {
    corpus: "records",
    tokens: &[
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b",",
        b"\"",
        b"\\",
        b" ",
        b"\n",
        b"\r\n",
        b"\t",
        b"\x0c",
        b"\xc2\xa0",
        b"{}",
        b"[]",
        b"{},",
        b"{}\n",
        b"null",
        b"true",
        b"tru",
        b"0",
        b"-",
        b"-0",
        b"01",
        b".5",
        b"1.",
        b"1e",
        b"1e5",
        b"1E+0",
        b"-1.50e1",
        b"\"t\":",
        b"\"\\u0069\":",
        b"\"j\":",
        b"\"\\u0000\"",
        b"\"\\ud800\"",
        b"\"\\udc00\":",
        b"\"\\ud83d\\ude00\"",
        b"\\u",
        b"\\ud83d",
        b"\\\"",
        b"\0",
        b"\x1f",
        b"\x7f",
        b"\xff",
        b"\xc3",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
        b"\xc3\xbc",
        b"\xe2\x80\xa8",
        b"\xf0\x9f\x98\x80",
        b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
        b"]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]",
        b"{\"o\":{\"x\":",
        b"NaN",
        b"Infinity",
        b"'",
        b"//",
        b"/**/",
    ],
};

/// Values of all kinds, and such as only look like one.
fn value() -> impl Strategy<Value = String> {
    let odd = [
        "null",
        "true",
        "false",
        "0",
        "-0",
        "1",
        "-1.50e1",
        "1.0",
        "1e3",
        "0.001e3",
        "1e-1",
        "9223372036854775807",
        "9223372036854775808",
        "-9.223372036854775808E18",
        "1e400",
        "1e-400",
        "4.9e-324",
        "0e1073741823",
        "0e1073741822",
        "1e131071",
        "1e131072",
        "0.1e-16382",
        "1e-16384",
        "123456789012345678901234567890",
        "0.10",
        "\"\"",
        "\"1\"",
        "\"-42\"",
        "\"1.0\"",
        "\"1e2\"",
        "\" 1\"",
        "\"1 \"",
        "\"01\"",
        "\"\\u0031\"",
        "\"true\"",
        "\"tru\\u0065\"",
        "\"2020-12-08\"",
        "\"2020-02-30\"",
        "\"2020-12-08 20:03:16.759617\"",
        "\"2020-12-08T20:03:16Z\"",
        "\"2020-12-08T20:03:16.7596171\"",
        "\"0000-12-31\"",
        "\"0190163d-8694-739b-aea5-966c26f8ad91\"",
        "\"0190163D8694739BAEA5966C26F8AD91\"",
        "\"\\u0000\"",
        "\"\\ud800\"",
        "\"\\ud83d\\ude00\"",
        "\"\\ud83d\\\\ude00\"",
        "\"\\\\u0000\"",
        "{}",
        "[]",
        "[1,[2,{\"k\":null}]]",
        "{\"x\":1}",
        "{\"x\":null,\"y\":{\"z\":[1],\"w\":2},\"x\":2}",
        "{\"y\":{\"z\":1}}",
        "[{\"k\":1},{\"k\":2,\"m\":3}]",
        "[1,{\"k\":2}]",
        "[1]",
        "{\"0\":1,\"1\":{\"k\":2}}",
        "{\"\\u0000\":1}",
        "[\"\\ud800\",1e200000]",
        "[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]",
    ];
    let deep = (120..132_usize).prop_map(|levels| "[".repeat(levels) + &"]".repeat(levels));
    prop_oneof![
        12 => select(odd.to_vec()).prop_map(str::to_owned),
        2 => any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
        1 => any::<f64>().prop_map(|number| serde_json::to_string(&number).unwrap()),
        1 => any::<i64>().prop_map(|number| number.to_string()),
        2 => "-?(0|[1-9][0-9]{0,25})(\\.[0-9]{1,12})?([eE][+-]?[0-9]{1,3})?",
        1 => deep,
    ]
}

/// Arrays and streams of objects.
pub fn records() -> BoxedStrategy<Vec<u8>> {
    let keys = [
        "t",
        "i",
        "d",
        "n",
        "b",
        "date",
        "at",
        "z",
        "u",
        "j",
        "o",
        "l",
        "k",
        "\\u0069",
        "\\u006f",
        "\\u0000",
        "\\ud800",
        "\\\"\\\\ud800\\\"",
        "",
        "é",
    ];
    let space = || select(vec!["", "", "", " ", "\n", "\t\r\n "]);
    let member =
        (select(keys.to_vec()), value(), space()).prop_map(|(key, value, space)| format!("\"{key}\"{space}:{space}{value}{space}"));
    let object = vec(member, 0..8).prop_map(|members| format!("{{{}}}", members.join(",")));
    let record = prop_oneof![8 => object, 1 => value()];
    (vec(record, 0..6), select(vec!["", "\n", " ", "\r\n"]), any::<bool>())
        .prop_map(|(records, space, is_array)| {
            if is_array {
                format!("[{}]", records.join(&format!(",{space}"))).into_bytes()
            } else {
                format!("{{}}\n{}", records.join(&format!("{space}\n"))).into_bytes()
            }
        })
        .boxed()
}
