//! `backup strategies`.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::output::{Cell, DIM, Printer, Table, local_time};
use super::setup::clock;
use super::{Exit, Global};
use crate::config;
use crate::model::Name;

#[derive(Serialize)]
struct Document {
    strategies: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    /// The next time as its own zone has it.
    #[serde(skip)]
    shown_next: Option<String>,
    instance: Name,
    name: Name,
    active: bool,
    schedule: Option<String>,
    next: Option<DateTime<Utc>>,
    sources: Vec<Name>,
    storages: Vec<Name>,
}

pub(super) fn run(global: &Global, printer: &Printer) -> anyhow::Result<Exit> {
    let settings = config::load(global.config.as_deref(), config::environment())?;
    let now = clock().now();
    let wanted = global.instance.as_deref();
    let mut rows = Vec::new();
    for instance in
        settings.instances.iter().filter(|one| wanted.is_none_or(|name| name == one.name.as_str()))
    {
        for strategy in instance.strategies.values() {
            let schedule = strategy.schedule.as_ref();
            let next =
                schedule.filter(|_| strategy.active).and_then(|schedule| schedule.next_after(now));
            rows.push(Row {
                shown_next: next.map(|next| local_time(next, &strategy.timezone)),
                instance: instance.name.clone(),
                name: strategy.name.clone(),
                active: strategy.active,
                schedule: schedule.map(ToString::to_string),
                next,
                sources: strategy.sources.clone(),
                storages: strategy.storages.clone(),
            });
        }
    }
    if printer.is_json() {
        printer.document(&Document { strategies: rows });
        return Ok(Exit::Done);
    }
    let mut table =
        Table::new(&["INSTANCE", "STRATEGY", "SCHEDULE", "NEXT", "SOURCES", "STORAGES"]);
    for row in &rows {
        let next = match (row.active, &row.shown_next) {
            (false, _) => Cell::styled("not active", DIM),
            (true, Some(next)) => next.as_str().into(),
            (true, None) => Cell::styled("by hand only", DIM),
        };
        table.row(vec![
            row.instance.as_str().into(),
            row.name.as_str().into(),
            row.schedule.as_deref().unwrap_or("-").into(),
            next,
            joined(&row.sources).into(),
            joined(&row.storages).into(),
        ]);
    }
    printer.text(&table.render());
    Ok(Exit::Done)
}

fn joined(names: &[Name]) -> String {
    names.iter().map(Name::as_str).collect::<Vec<_>>().join(", ")
}
