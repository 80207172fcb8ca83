//! Datasets by configuration alone: every column type, any names, and definitions that change after the tables were made.

use crate::support::{Cell, Sandbox, Store, array, event, on_both_stores};

on_both_stores!(
    a_dataset_of_ones_own_needs_only_a_section,
    every_column_type_is_kept,
    columns_take_other_keys_and_nested_values,
    names_may_be_key_words,
    unknown_keys_are_kept,
    a_column_that_the_definition_adds_is_added,
    a_column_that_differs_is_an_error_that_says_how,
    a_new_dimension_rebuilds_the_modelled_tables,
    a_view_of_all_totals_is_a_setting_of_any_dataset,
    a_definition_of_its_own_leaves_the_others_tables_alone,
    tables_of_a_newer_program_are_left_alone,
);

const SALES: &str = r#"
[datasets.sales]
dir = "shop/sales"
key = ["id"]
day = "sold"
[datasets.sales.columns]
id = "bigint"
sold = { type = "date", required = true }
shop = "text"
clerk = "uuid"
[datasets.sales.model]
dimensions = ["shop"]
distinct = { clerks = "clerk", shops = "shop" }
"#;

const SALES_FILE: &str = r#"
{"id": 1, "sold": "2024-05-01", "shop": "north", "clerk": "0190163D8694739BAEA5966C26F8AD91"}
{"id": 2, "sold": "2024-05-01", "shop": "north", "clerk": "0190163d-8694-739b-aea5-966c26f8ad91"}
{"id": 3, "sold": "2024-05-01", "shop": null}
{"id": 3, "sold": "2024-05-02", "shop": "south", "clerk": null}
"#;

fn with_sales(sandbox: &Sandbox) {
    sandbox.write("dataloader.toml", SALES);
    sandbox.write("raw_data/shop/sales/x.jsonl", SALES_FILE);
    sandbox.run(["load"]).ok();
}

fn a_dataset_of_ones_own_needs_only_a_section(sandbox: &Sandbox) {
    with_sales(sandbox);
    let by_date = "SELECT date, total_sales, unique_sales, clerks, shops FROM {modelled.sales_by_date} ORDER BY date";
    assert_eq!(sandbox.lines(by_date), ["2024-05-01|3|3|1|1", "2024-05-02|1|1|0|1"]);
    let by_shop = "SELECT date, coalesce(shop, '-'), total_sales, clerks FROM {modelled.sales_by_date_shop} ORDER BY 1, 2";
    assert_eq!(sandbox.lines(by_shop), ["2024-05-01|-|1|0", "2024-05-01|north|2|1", "2024-05-02|south|1|0"]);
    let report = sandbox.run(["report"]).ok().stdout;
    assert!(report.contains("modelled.sales_by_date_shop") && report.contains("(null)"), "{report}");
    assert!(
        sandbox.try_query("SELECT * FROM {raw.events}").is_err(),
        "the configuration takes the built-in one's place as a whole"
    );
}

fn a_view_of_all_totals_is_a_setting_of_any_dataset(sandbox: &Sandbox) {
    with_sales(sandbox);
    assert!(sandbox.try_query("SELECT * FROM {modelled.fact_sales}").is_err(), "nobody asked for it");
    sandbox.write("dataloader.toml", format!("{SALES}fact_view = {{ shop = \"branch\" }}\n"));
    sandbox.run(["load"]).ok();
    let view = "SELECT sold, shop, total_sales_by_date, total_sales_by_date_clerks, total_sales_by_date_shops, \
                total_sales_by_date_by_branch FROM {modelled.fact_sales} ORDER BY sold, coalesce(shop, '-')";
    assert_eq!(sandbox.lines(view), ["2024-05-01|NULL|3|1|1|1", "2024-05-01|north|3|1|1|2", "2024-05-02|south|1|0|1|1"]);
    sandbox.write("dataloader.toml", SALES);
    sandbox.run(["load"]).ok();
    assert!(sandbox.try_query("SELECT * FROM {modelled.fact_sales}").is_err(), "it goes with its setting");
}

fn every_column_type_is_kept(sandbox: &Sandbox) {
    let config = "[datasets.all]\ndir = \"all\"\nkey = [\"a\"]\n[datasets.all.columns]\n\
        a = \"text\"\nb = \"bigint\"\nc = \"double\"\nd = \"numeric\"\ne = \"boolean\"\nf = \"date\"\ng = \"timestamp\"\n\
        h = \"timestamptz\"\ni = \"uuid\"\nj = \"jsonb\"\n";
    sandbox.write("dataloader.toml", config);
    let records = [
        r#"{"a":"ü\t\"'\\","b":-9223372036854775808,"c":0.1,"d":123456789012345678901234567890.10,"e":true,"f":"0001-01-01",
            "g":"9999-12-31T23:59:59.999999","h":"2024-05-01T01:30:00.5+02:00","i":"0190163D8694739BAEA5966C26F8AD91","j":[1,"x"]}"#,
        r#"{"a":42.50,"b":"9223372036854775807","c":"-7.62939453125e-6","d":"-0.000001","e":"false","f":"2024-02-29",
            "g":"2024-05-01 10:00","h":"2024-05-01 10:00:00","i":"0190163d-8694-739b-aea5-966c26f8ad91","j":"text"}"#,
        r#"{"a":null,"b":null,"c":null,"d":null,"e":null,"f":null,"g":null,"h":null,"i":null,"j":null}"#,
        r#"{"a":{"k":1}}"#,
    ];
    sandbox.write("raw_data/all/x.json", array(&records));
    sandbox.run(["load"]).ok();
    let lines = sandbox.lines("SELECT a, b, c, d, e, f, g, h, i FROM {raw.all} ORDER BY coalesce(a, '')");
    let mut lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    lines.sort_unstable();
    let expected = [
        "42.50|9223372036854775807|-0.00000762939453125|-0.000001|0|2024-02-29|2024-05-01 10:00:00.000000|2024-05-01 10:00:00.000000|0190163d-8694-739b-aea5-966c26f8ad91",
        "NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL",
        "{\"k\":1}|NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL",
        "ü\t\"'\\|-9223372036854775808|0.1|123456789012345678901234567890.10|1|0001-01-01|9999-12-31 23:59:59.999999\
         |2024-04-30 23:30:00.500000|0190163d-8694-739b-aea5-966c26f8ad91",
    ];
    assert_eq!(lines, expected);
    let json = |cell: Cell| cell.map(|text| serde_json::from_str::<serde_json::Value>(&text).expect("stored as JSON"));
    let values: Vec<_> =
        sandbox.query("SELECT j FROM {raw.all} WHERE j IS NOT NULL ORDER BY b").into_iter().flatten().map(json).collect();
    assert_eq!(values, [Some(serde_json::json!([1, "x"])), Some(serde_json::json!("text"))]);
}

fn columns_take_other_keys_and_nested_values(sandbox: &Sandbox) {
    let config = "[datasets.pushes]\nkey = [\"id\"]\n[datasets.pushes.columns]\n\
        id = { type = \"bigint\", required = true, from = \"Id No.\" }\n\
        login = { type = \"text\", from = \"/actor/login\" }\ntag = { type = \"text\", from = \"/tags/0\" }\n";
    sandbox.write("dataloader.toml", config);
    let records = [
        r#"{"Id No.":1,"actor":{"login":"ann","score":1.50},"tags":["x"]}"#,
        r#"{"Id No.":2,"actor":{"login":"bob"}}"#,
        r#"{"Id No.":"two","actor":null}"#,
    ];
    sandbox.write("raw_data/pushes/x.json", array(&records));
    sandbox.run(["load"]).code(3);
    let rows = sandbox.lines("SELECT id, login, tag, CAST(_extra AS text) FROM {raw.pushes} ORDER BY id");
    let rows: Vec<String> = rows.iter().map(|row| row.replace(' ', "")).collect();
    assert_eq!(rows, [r#"1|ann|x|{"actor":{"score":1.50}}"#, "2|bob|NULL|NULL"]);
    assert_eq!(sandbox.lines("SELECT detail FROM {raw.rejects}"), ["id (from Id No.): \"two\" is no integer (expected e.g. 42)"]);
}

fn names_may_be_key_words(sandbox: &Sandbox) {
    let config = "[datasets.select]\ndir = \"x\"\nkey = [\"order\", \"Group\"]\nday = \"table\"\n[datasets.select.columns]\n\
        order = \"text\"\nGroup = \"text\"\ntable = { type = \"timestamptz\", required = true }\nd = \"text\"\n\
        [datasets.select.model]\ndimensions = [\"Group\", \"d\"]\ndistinct = { where = \"order\", g = \"d\" }\n";
    sandbox.write("dataloader.toml", config);
    let record = r#"{"order":"1","Group":"a","table":"2024-05-01T00:00:00Z","group":"kept apart"}"#;
    sandbox.write("raw_data/x/x.json", record);
    for _ in 0..2 {
        sandbox.run(["load"]).ok();
        let rows = r#"SELECT "order", "Group", _extra IS NOT NULL FROM {raw.select}"#;
        assert_eq!(sandbox.lines(rows), ["1|a|1"]);
    }
    let by_group = r#"SELECT "Group", total_select, unique_select, "where", g FROM {modelled.select_by_date_Group}"#;
    assert_eq!(sandbox.lines(by_group), ["a|1|1|1|0"]);
    sandbox.run(["model", "--full", "--check"]).ok();
    sandbox.run(["report"]).ok();
}

fn unknown_keys_are_kept(sandbox: &Sandbox) {
    let known = event("a", "ada", "2024-05-01 10:00:00");
    let more = known.replace("{", r#"{"z": {"n": [1, 2.50]}, "id": "first", "y": 1, "y": "last \"wins\"", "#);
    sandbox.write_events("x.json", array(&[&more, &known.replace("\"a\"", "\"b\"")]));
    sandbox.run(["load", "--dataset", "events"]).ok();
    let cells = sandbox.query("SELECT _extra FROM {raw.events} ORDER BY id");
    let extra: serde_json::Value = serde_json::from_str(cells[0][0].as_deref().expect("keys without a column")).expect("JSON");
    assert_eq!(extra, serde_json::json!({"z": {"n": [1, 2.5]}, "y": "last \"wins\""}));
    assert_eq!(cells[1][0], None);
    assert_eq!(sandbox.lines("SELECT id FROM {raw.events} ORDER BY id"), ["a", "b"], "a key twice: the last wins");
}

fn a_column_that_the_definition_adds_is_added(sandbox: &Sandbox) {
    with_sales(sandbox);
    sandbox.write("dataloader.toml", SALES.replace("shop = \"text\"", "price = \"numeric\"\nshop = \"text\""));
    sandbox.write("raw_data/shop/sales/x.jsonl", r#"{"id":4,"sold":"2024-05-02","shop":"north","price":9.90}"#);
    sandbox.run(["load"]).ok();
    let rows = "SELECT id, shop, price FROM {raw.sales} ORDER BY id, sold";
    assert_eq!(sandbox.lines(rows), ["1|north|NULL", "2|north|NULL", "3|NULL|NULL", "3|south|NULL", "4|north|9.90"]);
    assert_eq!(sandbox.lines("SELECT id, price FROM {raw.sales_delta}"), ["4|9.90"]);
    sandbox.drop_in("sales", "y.jsonl", r#"{"id":5,"sold":"2024-05-02","shop":"west","price":0.10}"#);
    sandbox.run_once().ok();
    assert_eq!(sandbox.lines("SELECT shop, price FROM {raw.sales} WHERE id = 5"), ["west|0.10"]);
    sandbox.run(["model", "--check"]).ok();
}

fn a_column_that_differs_is_an_error_that_says_how(sandbox: &Sandbox) {
    with_sales(sandbox);
    for (definition, said) in [
        (SALES.replace("id = \"bigint\"", "id = \"text\""), "column id is bigint in the table, and text in the definition"),
        (
            SALES.replace("clerk = \"uuid\"\n", "").replace("clerks = \"clerk\", ", ""),
            "has a column clerk, which the definition does not name",
        ),
    ] {
        sandbox.write("dataloader.toml", definition);
        for command in ["load", "report", "migrate"] {
            let outcome = sandbox.run([command]).code(1);
            assert!(outcome.stderr.contains(said) && outcome.stderr.contains("dataset sales"), "{}", outcome.stderr);
        }
    }
    sandbox.write("dataloader.toml", SALES);
    sandbox.run(["load"]).ok();
    assert_eq!(sandbox.count("raw.sales"), 4);
}

fn a_new_dimension_rebuilds_the_modelled_tables(sandbox: &Sandbox) {
    with_sales(sandbox);
    let wider = SALES.replace("dimensions = [\"shop\"]", "dimensions = [\"clerk\"]").replace(", shops = \"shop\"", "");
    sandbox.write("dataloader.toml", wider);
    sandbox.run(["model"]).ok();
    let by_clerk = "SELECT date, count(*), sum(total_sales) FROM {modelled.sales_by_date_clerk} GROUP BY date ORDER BY date";
    assert_eq!(sandbox.lines(by_clerk), ["2024-05-01|2|3", "2024-05-02|1|1"]);
    assert!(sandbox.try_query("SELECT * FROM {modelled.sales_by_date_shop}").is_err(), "what is not defined any more goes");
    assert!(sandbox.try_query("SELECT shops FROM {modelled.sales_by_date}").is_err());
    sandbox.run(["model", "--check"]).ok();
    sandbox.write("dataloader.toml", SALES);
    // Any command brings the tables up to date; a load refreshes what is pending.
    sandbox.run(["load"]).ok();
    let by_date = "SELECT date, total_sales, unique_sales, clerks, shops FROM {modelled.sales_by_date} ORDER BY date";
    assert_eq!(sandbox.lines(by_date), ["2024-05-01|3|3|1|1", "2024-05-02|1|1|0|1"]);
}

fn a_definition_of_its_own_leaves_the_others_tables_alone(sandbox: &Sandbox) {
    sandbox.write_events("x.json", event("a", "ada", "2024-05-01 10:00:00"));
    sandbox.run(["load", "--dataset", "events"]).ok();
    with_sales(sandbox);
    assert_eq!((sandbox.count("raw.events"), sandbox.count("modelled.fact_events")), (1, 1));
    let status = sandbox.run(["status", "--format", "json"]).ok().json();
    let names: Vec<_> = status["datasets"].as_array().expect("a list").iter().map(|d| d["dataset"].clone()).collect();
    assert_eq!(names, ["sales", "events"], "the ledger remembers");
}

fn tables_of_a_newer_program_are_left_alone(sandbox: &Sandbox) {
    sandbox.run(["migrate"]).ok();
    let table = match sandbox.store() {
        Store::Sqlite => "dataloader_migrations",
        Store::Postgres => "dataloader.migrations",
    };
    sandbox.execute(&format!(
        "INSERT INTO {table} (version, description, success, checksum, execution_time) \
         SELECT 9999, 'later', success, checksum, 0 FROM {table} WHERE version = 1"
    ));
    let outcome = sandbox.run(["status"]).code(1);
    assert!(outcome.stderr.contains("migration 9999") && outcome.stderr.contains("newer version"), "{}", outcome.stderr);
}
