//! Charts of the model, as SVG made here: bars of totals, lines of unique counts, stacked values of a dimension. Each bar has a
//! title that a pointer shows, and beside each chart is a table of the same numbers.

use maud::{Markup, html};

use super::text::{count, shown};
use crate::answers::overview::{Chart, STACKED, Series, Stack};

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 240.0;
/// Left of the plot are the numbers, below it the days.
const LEFT: f64 = 70.0;
const BOTTOM: f64 = 28.0;
const TOP: f64 = 16.0;

/// Where the days and values of a chart are.
struct Plot {
    days: usize,
    /// From one line of the grid to the next.
    step: i64,
    /// How many steps the plot is high.
    steps: i64,
}

impl Plot {
    fn new(days: usize, most: i64) -> Self {
        let (step, steps) = steps(most.max(1));
        Self { days, step, steps }
    }

    #[expect(clippy::cast_precision_loss, reason = "positions on a screen")]
    fn slot(&self) -> f64 {
        (WIDTH - LEFT) / self.days.max(1) as f64
    }

    #[expect(clippy::cast_precision_loss, reason = "positions on a screen")]
    fn x(&self, day: usize) -> f64 {
        LEFT + self.slot() * day as f64
    }

    #[expect(clippy::cast_precision_loss, reason = "positions on a screen")]
    fn height(&self, value: i64) -> f64 {
        (HEIGHT - TOP - BOTTOM) * (value as f64 / (self.step as f64 * self.steps as f64))
    }

    fn y(&self, value: i64) -> f64 {
        HEIGHT - BOTTOM - self.height(value)
    }

    fn bar_width(&self) -> f64 {
        (self.slot() * 0.72).clamp(1.0, 44.0)
    }

    fn bar_x(&self, day: usize) -> f64 {
        self.x(day) + (self.slot() - self.bar_width()) / 2.0
    }

    /// Lines and numbers at the left, some days below.
    fn frame(&self, days: &[String]) -> Markup {
        let every = days.len().div_ceil(6).max(1);
        html! {
            @for value in (0..=self.steps).map(|number| number * self.step) {
                line class="grid" x1=(LEFT) x2=(WIDTH) y1=(px(self.y(value))) y2=(px(self.y(value))) {}
                text x=(LEFT - 6.0) y=(px(self.y(value) + 4.0)) text-anchor="end" { (short(value)) }
            }
            // Every second one is left out where there is little room.
            @for (number, (i, day)) in days.iter().enumerate().step_by(every).enumerate() {
                @let x = self.x(i) + self.slot() / 2.0;
                @let (at, anchor) = if x > WIDTH - 36.0 { (WIDTH, "end") } else if x < LEFT + 36.0 { (LEFT, "start") } else { (x, "middle") };
                text class=[(number % 2 == 1 && days.len() > 3).then_some("more")] x=(px(at)) y=(HEIGHT - 8.0) text-anchor=(anchor) { (day) }
            }
        }
    }
}

fn px(value: f64) -> String {
    format!("{value:.1}")
}

/// The round step that takes at most five to reach the value, and how many it takes: the highest bar fills most of the plot.
fn steps(value: i64) -> (i64, i64) {
    let mut power: i64 = 1;
    loop {
        for step in [power, 2 * power, power / 10 * 25, 5 * power] {
            if step > 0 && value <= step.saturating_mul(5) {
                return (step, (value - 1) / step + 1);
            }
        }
        power *= 10;
    }
}

/// A number of the axis, in a few characters: `250`, `1.25k`, `40M`.
fn short(value: i64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "round numbers")]
    let in_units = |unit: i64, name: &str| format!("{}{name}", value as f64 / unit as f64);
    match value {
        0..1_000 => value.to_string(),
        1_000..1_000_000 => in_units(1_000, "k"),
        1_000_000..1_000_000_000 => in_units(1_000_000, "M"),
        _ => in_units(1_000_000_000, "G"),
    }
}

/// The charts of a dataset.
pub fn charts(chart: &Chart) -> Markup {
    html! {
        div class="charts" {
            (totals(chart))
            @for stack in &chart.stacks { (stacked(chart, stack)) }
        }
        @if !chart.modelling.is_empty() {
            p class="warn" {
                (count(chart.modelling.len().try_into().unwrap_or(i64::MAX)))
                " of these days have rows that are not modelled yet (dashed): they follow by themselves while a pipeline runs, or with "
                code { "dataloader model" } "."
            }
        }
    }
}

/// The totals as bars, the unique counts as lines.
fn totals(chart: &Chart) -> Markup {
    let [totals, lines @ ..] = &chart.series[..] else { return html! {} };
    let plot = Plot::new(chart.days.len(), totals.values.iter().copied().max().unwrap_or(0));
    let id = format!("chart-{}", chart.dataset);
    html! {
        figure {
            figcaption { (chart.dataset) " per day (UTC)" }
            svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img" aria-label={ "Bars: " (totals.name) " per day. The table below has the numbers." } {
                (plot.frame(&chart.days))
                @for (i, value) in totals.values.iter().enumerate() {
                    rect class="f0" x=(px(plot.bar_x(i))) y=(px(plot.y(*value))) width=(px(plot.bar_width())) height=(px(plot.height(*value))) {
                        title { (title(chart, i)) }
                    }
                    @if chart.modelling.contains(&chart.days[i]) {
                        rect class="pending" x=(px(plot.bar_x(i))) y=(px(plot.y(*value))) width=(px(plot.bar_width())) height=(px(plot.height(*value))) {}
                    }
                }
                @for (i, line) in lines.iter().enumerate() { (self::line(&plot, i + 1, line)) }
            }
            ul class="key" {
                (key("f0", &totals.name))
                @for (i, line) in lines.iter().enumerate() { (key(&format!("d{}", 1 + i % 4), &line.name)) }
            }
            (table(&id, chart, &chart.series))
        }
    }
}

fn title(chart: &Chart, day: usize) -> String {
    let values: Vec<String> = chart.series.iter().map(|s| format!("{} {}", count(s.values[day]), s.name)).collect();
    format!("{}: {}", chart.days[day], values.join(", "))
}

fn line(plot: &Plot, number: usize, series: &Series) -> Markup {
    let x = |day: usize| plot.x(day) + plot.slot() / 2.0;
    let points: Vec<String> = series.values.iter().enumerate().map(|(i, v)| format!("{:.1},{:.1}", x(i), plot.y(*v))).collect();
    let class = 1 + (number - 1) % 4;
    html! {
        polyline class={ "line l" (class) } points=(points.join(" ")) {}
        @for (i, value) in series.values.iter().enumerate() {
            circle class={ "d" (class) } cx=(px(x(i))) cy=(px(plot.y(*value))) r="3" { title { (count(*value)) " " (series.name) } }
        }
    }
}

/// The values of a dimension, one above the other.
fn stacked(chart: &Chart, stack: &Stack) -> Markup {
    let sum = |day: usize| stack.series.iter().map(|series| series.values[day]).sum::<i64>();
    let plot = Plot::new(chart.days.len(), (0..chart.days.len()).map(sum).max().unwrap_or(0));
    html! {
        figure {
            figcaption { (chart.dataset) " per day by " (stack.dimension) }
            svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img" aria-label=(stack_label(stack)) {
                (plot.frame(&chart.days))
                @for (i, series) in stack.series.iter().enumerate() { path class=(fill(stack, i)) d=(blocks(&plot, stack, series, i)) {} }
                @for (i, day) in chart.days.iter().enumerate() {
                    rect class="over" x=(px(plot.x(i))) y="0" width=(px(plot.slot())) height=(HEIGHT - BOTTOM) { title { (stack_title(day, stack, i)) } }
                }
            }
            ul class="key" {
                @for (i, series) in stack.series.iter().enumerate() { (key(fill(stack, i), &series.name)) }
            }
        }
    }
}

/// The blocks of a series in all days, as one path.
fn blocks(plot: &Plot, stack: &Stack, series: &Series, number: usize) -> String {
    let days = series.values.iter().enumerate().filter(|(_, value)| **value > 0);
    days.map(|(day, value)| {
        let above: i64 = stack.series[..=number].iter().map(|series| series.values[day]).sum();
        let (x, y, width, height) = (plot.bar_x(day), plot.y(above), plot.bar_width(), plot.height(*value));
        format!("M{x:.1} {y:.1}h{width:.1}v{height:.1}h-{width:.1}z")
    })
    .collect()
}

/// The chart in words: what each value has in all these days together.
fn stack_label(stack: &Stack) -> String {
    let sum = |series: &Series| format!("{} {}", shown(&series.name, 40), count(series.values.iter().sum()));
    let sums: Vec<String> = stack.series.iter().map(sum).collect();
    format!("Stacked bars by {}. In these days: {}.", stack.dimension, sums.join(", "))
}

fn stack_title(day: &str, stack: &Stack, at: usize) -> String {
    let value =
        |series: &Series| (series.values[at] > 0).then(|| format!("{} {}", count(series.values[at]), shown(&series.name, 40)));
    let values: Vec<String> = stack.series.iter().filter_map(value).collect();
    format!("{day}: {}", values.join(", "))
}

fn fill(stack: &Stack, series: usize) -> &'static str {
    let is_rest = series + 1 == stack.series.len() && series == STACKED;
    if is_rest { "fo" } else { ["f1", "f2", "f3", "f4", "f5"][series % 5] }
}

fn key(class: &str, name: &str) -> Markup {
    html! {
        li { svg viewBox="0 0 10 10" aria-hidden="true" { rect class=(class) width="10" height="10" rx="2" {} } bdi { (shown(name, 60)) } }
    }
}

/// The numbers of a chart.
fn table(id: &str, chart: &Chart, series: &[Series]) -> Markup {
    html! {
        details id=(id) {
            summary id={ (id) "-open" } { "The numbers" }
            div class="scroll" id={ (id) "-table" } tabindex="0" role="region" aria-label="The numbers of the chart" {
                table {
                    thead { tr { th scope="col" { "date" } @for s in series { th scope="col" class="n" { bdi { (shown(&s.name, 60)) } } } } }
                    tbody {
                        @for (i, day) in chart.days.iter().enumerate().rev() {
                            tr { th scope="row" { (day) } @for s in series { td class="n" { (count(s.values[i])) } } }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn an_axis_has_round_steps_and_ends_soon_after_the_highest_value() {
        let cases =
            [(1, (1, 1)), (5, (1, 5)), (6, (2, 3)), (11, (5, 3)), (440, (100, 5)), (101, (25, 5)), (1_000_001, (250_000, 5))];
        for (value, expected) in cases {
            assert_eq!(steps(value), expected, "{value}");
        }
        for value in (1..5_000).chain([i64::MAX / 100]) {
            let (step, number) = steps(value);
            assert!(step * number >= value && value * 10 >= step * number * 7, "{value}: {step} × {number}");
        }
    }

    #[test]
    fn numbers_of_the_axis_are_short() {
        let numbers = [0, 5, 250, 1_000, 1_250, 12_500, 400_000, 2_500_000, 3_000_000_000];
        assert_eq!(numbers.map(short), ["0", "5", "250", "1k", "1.25k", "12.5k", "400k", "2.5M", "3G"]);
    }

    #[test]
    fn names_of_data_are_never_markup() {
        let evil = "<script>alert(1)</script>\u{202e}".to_owned();
        let series = vec![Series { name: "total_events".to_owned(), values: vec![3] }];
        let stack = Stack { dimension: "organization_name".to_owned(), series: vec![Series { name: evil, values: vec![3] }] };
        let days = vec!["2026-01-01".to_owned()];
        let modelling = BTreeSet::from([days[0].clone()]);
        let chart = Chart { dataset: "events".to_owned(), days, modelling, series, stacks: vec![stack] };
        let html = charts(&chart).into_string();
        assert!(!html.contains("<script") && html.contains("&lt;script&gt;alert(1)&lt;/script&gt;\\u{202e}"), "{html}");
        assert!(html.contains("2026-01-01: 3 total_events") && html.contains("class=\"pending\""));
    }
}
