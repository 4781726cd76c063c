//! `backup stats`.

use clap::Args;
use serde::Serialize;

use super::Exit;
use super::list::Unlisted;
use super::output::{BAD, Cell, DIM, Printer, Table, WARN, or_dash};
use super::setup::{Setup, StorageArgs};
use crate::engine::{self, Forecast, HORIZONS, Stats};
use crate::model::ByteSize;

/// Sooner than this a storage that fills up is shown as a warning, in days.
const SOON: u32 = 90;

#[derive(Debug, Args)]
pub(super) struct StatsArgs {
    /// Of this strategy only
    #[arg(long, value_name = "NAME")]
    strategy: Option<String>,
    #[command(flatten)]
    storage: StorageArgs,
}

#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    stats: &'a Stats,
    unlisted: Vec<Unlisted>,
}

pub(super) async fn run(setup: &Setup, args: StatsArgs, printer: &Printer) -> anyhow::Result<Exit> {
    let reading = setup.showing(&args.storage, args.strategy.as_deref()).await?;
    let listing = reading.list().await;
    let stats =
        engine::stats(&reading.engine, &reading.storages, &listing, reading.instance.as_ref())
            .await;
    drop(reading);
    let exit = if listing.unlisted.is_empty() { Exit::Done } else { Exit::Failed };
    if printer.is_json() {
        let told = |(storage, error)| Unlisted { storage, error };
        printer.document(&Document {
            stats: &stats,
            unlisted: listing.unlisted.into_iter().map(told).collect(),
        });
        return Ok(exit);
    }
    if !stats.places.is_empty() || listing.unlisted.is_empty() {
        printer.text(&text(&stats));
    }
    for (storage, error) in &listing.unlisted {
        printer.note(&format!("{BAD}{storage} could not be listed:{BAD:#} {error}"));
    }
    Ok(exit)
}

fn text(stats: &Stats) -> String {
    if stats.places.is_empty() {
        return "No snapshots.\n".to_owned();
    }
    let [month, quarter, year] = HORIZONS.map(|days| format!(">IN {days} DAYS"));
    let mut places = Table::new(&[
        "STRATEGY",
        "STORAGE",
        ">SNAPSHOTS",
        "OLDEST",
        ">NEWEST",
        ">ALL",
        ">GROWTH A MONTH",
        &month,
        &quarter,
        &year,
    ]);
    for place in &stats.places {
        let growth = place.growth_bytes_per_day.map(|bytes| bytes * 30.0);
        let mut row: Vec<Cell> = vec![
            place.strategy.as_str().into(),
            place.storage.as_str().into(),
            place.snapshots.to_string().into(),
            place.oldest.format("%Y-%m-%d").to_string().into(),
            ByteSize(place.newest_bytes).to_string().into(),
            ByteSize(place.stored_bytes).to_string().into(),
            or_dash(growth.map(signed)).into(),
        ];
        row.extend(forecast(&place.forecast));
        places.row(row);
    }
    let mut storages =
        Table::new(&["STORAGE", ">SNAPSHOTS TAKE", ">FREE", &month, &quarter, &year, "FULL"]);
    for storage in &stats.storages {
        let mut row: Vec<Cell> = vec![
            storage.storage.as_str().into(),
            ByteSize(storage.stored_bytes).to_string().into(),
            or_dash(storage.free_bytes.map(ByteSize)).into(),
        ];
        row.extend(forecast(&storage.forecast));
        row.push(match (storage.full_in_days, storage.free_bytes, storage.forecast.is_empty()) {
            (Some(days), ..) => {
                let style = if days <= SOON { BAD } else { WARN };
                Cell::styled(format!("in {days} days"), style)
            }
            (None, Some(_), false) => "not within a year".into(),
            (None, ..) => "-".into(),
        });
        storages.row(row);
    }
    format!(
        "{}\n{}{DIM}What will be is by the schedule, the retention and the growth as they \
         are.{DIM:#}\n",
        places.render(),
        storages.render()
    )
}

fn forecast(forecast: &[Forecast]) -> impl Iterator<Item = Cell> {
    HORIZONS
        .map(|days| {
            let there = forecast.iter().find(|one| one.days == days);
            or_dash(there.map(|one| ByteSize(one.stored_bytes))).into()
        })
        .into_iter()
}

fn signed(bytes: f64) -> String {
    let sign = if bytes < 0.0 { "-" } else { "+" };
    format!("{sign}{}", ByteSize(bytes.abs() as u64))
}
