//! Charts of the model, as SVG made here: bars of totals, lines of unique counts, stacked values of a dimension. Each bar has a
//! title that a pointer shows, and beside each chart is a table of the same numbers.

use maud::{Markup, html};

use super::text::{count, shown};
use crate::answers::overview::{Chart, STACKED, Series, Stack};

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 240.0;
/// Left of the plot are the numbers, below it the days.
const LEFT: f64 = 62.0;
const BOTTOM: f64 = 26.0;
const TOP: f64 = 8.0;

/// Where the days and values of a chart are.
struct Plot {
    days: usize,
    most: f64,
}

impl Plot {
    #[expect(clippy::cast_precision_loss, reason = "positions on a screen")]
    fn new(days: usize, most: i64) -> Self {
        Self { days, most: round_up(most.max(1)) as f64 }
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
        (HEIGHT - TOP - BOTTOM) * (value as f64 / self.most)
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
        #[expect(clippy::cast_possible_truncation, reason = "it was an integer before")]
        let most = self.most as i64;
        let step = days.len().div_ceil(6).max(1);
        html! {
            @for part in 0..=4_i64 {
                @let value = most * part / 4;
                @if most >= 4 || part == 0 || part == 4 {
                    line class="grid" x1=(LEFT) x2=(WIDTH) y1=(px(self.y(value))) y2=(px(self.y(value))) {}
                    text x=(LEFT - 6.0) y=(px(self.y(value) + 4.0)) text-anchor="end" { (count(value)) }
                }
            }
            @for (i, day) in days.iter().enumerate().filter(|(i, _)| i % step == 0) {
                @let x = self.x(i) + self.slot() / 2.0;
                @let (at, anchor) = if x > WIDTH - 36.0 { (WIDTH, "end") } else { (x, "middle") };
                text x=(px(at)) y=(HEIGHT - 8.0) text-anchor=(anchor) { (day) }
            }
        }
    }
}

fn px(value: f64) -> String {
    format!("{value:.1}")
}

/// The next number whose quarters are round.
fn round_up(value: i64) -> i64 {
    let mut step = 1;
    loop {
        for factor in [4, 8, 12, 20] {
            if value <= step * factor {
                return step * factor;
            }
        }
        step *= 10;
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
            div class="scroll" tabindex="0" role="region" aria-label="The numbers of the chart" {
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
    fn an_axis_ends_at_a_round_number_above_all_values() {
        assert_eq!([1, 4, 5, 36, 81, 199, 201, 1_000_001].map(round_up), [4, 4, 8, 40, 120, 200, 400, 1_200_000]);
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
