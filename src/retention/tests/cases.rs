//! Each rule, case by case.

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;

use super::{at, every, kept};
use crate::retention::Period;

/// Rules, times, and the positions of those that are kept.
type Case<'a> = (&'a str, Vec<DateTime<Utc>>, &'a [usize]);

/// Cases of one zone: rules, times in UTC from the newest on, the positions of those that are kept.
type InZone<'a> = (&'a str, &'a [&'a str], &'a [usize]);

fn hold(zone: &str, cases: &[InZone<'_>]) {
    for (rules, times, expected) in cases {
        let times: Vec<DateTime<Utc>> = times.iter().map(|time| at(time)).collect();
        assert!(times.is_sorted_by(|a, b| a > b), "{zone} {rules}: the newest is first");
        assert_eq!(kept(rules, zone, &times), *expected, "{zone} {rules}");
    }
}

#[test]
fn each_rule_keeps_what_restics_does() {
    let daily = |count| every(24, count, "2026-11-21T12:00");
    let cases: &[Case<'_>] = &[
        ("keep_last = 3", daily(10), &[0, 1, 2]),
        ("keep_last = 30", daily(3), &[0, 1, 2]),
        ("keep_last = -1", daily(4), &[0, 1, 2, 3]),
        // Several in a second, a minute, an hour are each for themselves.
        (
            "keep_last = 2",
            vec![at("2026-11-21T12:02"), at("2026-11-21T12:01"), at("2026-11-21T12:00")],
            &[0, 1],
        ),
        (
            "keep_hourly = 2",
            vec![
                at("2026-11-21T12:50"),
                at("2026-11-21T12:10"),
                at("2026-11-21T11:59"),
                at("2026-11-21T10:00"),
            ],
            &[0, 2],
        ),
        // The same hour of another day is another hour; hours without a snapshot use up nothing.
        ("keep_hourly = 3", daily(9), &[0, 1, 2]),
        // Six a day: the newest of each day.
        ("keep_daily = 3", every(4, 24, "2026-11-21T20:00"), &[0, 6, 12]),
        // The count is not used up, so the oldest is kept too.
        ("keep_daily = 9", every(4, 23, "2026-11-21T20:00"), &[0, 6, 12, 18, 22]),
        ("keep_daily = \"unlimited\"", every(4, 20, "2026-11-21T20:00"), &[0, 6, 12, 18, 19]),
        // Used up by the last day, so the oldest is not kept.
        ("keep_daily = 4", every(4, 23, "2026-11-21T20:00"), &[0, 6, 12, 18]),
        // 2026-11-21 is a Saturday; the weeks before it end on Sundays.
        ("keep_weekly = 3", daily(21), &[0, 6, 13]),
        ("keep_monthly = 2", daily(60), &[0, 21]),
        ("keep_monthly = 4", daily(60), &[0, 21, 52, 59]),
        ("keep_quarterly = 2", daily(80), &[0, 52]),
        ("keep_yearly = 2", daily(400), &[0, 325]),
        // Rules do not wait for each other: the newest uses up one of each.
        ("keep_last = 1\nkeep_daily = 2", daily(5), &[0, 1]),
        ("keep_daily = 2\nkeep_weekly = 2", daily(14), &[0, 1, 6]),
        // Counted back from the newest snapshot, not from now; exactly so old is too old.
        ("keep_within = \"3d\"", daily(10), &[0, 1, 2]),
        ("keep_within = \"1m\"", daily(40), &(0..31).collect::<Vec<_>>()),
        ("keep_within = \"36h\"", daily(10), &[0, 1]),
        ("keep_within = \"100000y\"", daily(4), &[0, 1, 2, 3]),
        ("keep_within_hourly = \"3h\"", every(1, 9, "2026-11-21T12:30"), &[0, 1, 2]),
        (
            "keep_within_hourly = \"2h\"",
            vec![
                at("2026-11-21T12:50"),
                at("2026-11-21T12:10"),
                at("2026-11-21T11:59"),
                at("2026-11-21T10:40"),
            ],
            &[0, 2],
        ),
        ("keep_within_daily = \"2d\"", every(4, 24, "2026-11-21T20:00"), &[0, 6]),
        ("keep_within_weekly = \"21d\"", daily(28), &[0, 6, 13, 20]),
        ("keep_within_monthly = \"2m\"", daily(90), &[0, 21, 52]),
        ("keep_within_quarterly = \"1y\"", daily(500), &[0, 52, 144, 235, 325]),
        ("keep_within_yearly = \"2y\"", daily(500), &[0, 325, 499]),
    ];
    for (rules, times, expected) in cases {
        assert_eq!(kept(rules, "UTC", times), *expected, "{rules}");
    }
}

/// The examples in `doc/060_forget.rst` of restic.
#[test]
fn the_examples_of_restics_documentation_come_out_the_same() {
    // A backup every Sunday for 12 weeks: `--keep-daily 4` keeps the last four Sundays.
    let sundays = every(7 * 24, 12, "2019-11-17T11:00");
    assert_eq!(kept("keep_daily = 4", "UTC", &sundays), [0, 1, 2, 3]);

    // A backup every day for 100 years: 7 daily, 4 last days of a week, 11 or 12 of a month, 74 or
    // 75 of a year.
    let century = every(24, 36_525, "2026-11-21T12:00");
    let policy = "keep_daily = 7\nkeep_weekly = 5\nkeep_monthly = 12\nkeep_yearly = 75";
    let all = kept(policy, "UTC", &century);
    let only = |rule: &str| kept(rule, "UTC", &century);
    assert_eq!(only("keep_daily = 7").len(), 7);
    // The week that is under way and the one before it: of the five, only the first ends within the
    // seven days.
    assert_eq!(only("keep_weekly = 5"), [0, 6, 13, 20, 27]);
    let (months, years) = (only("keep_monthly = 12"), only("keep_yearly = 75"));
    assert_eq!((months.len(), years.len()), (12, 75));
    // The newest is one of each, as are 15 November's week and the seven days, and December's last
    // day ends its year too.
    assert_eq!(all.len(), 7 + 3 + 11 + 73);

    // The same with periods: daily for a week, weekly for a month, monthly for a year, yearly
    // for 75.
    let policy = "keep_within_daily = \"7d\"\nkeep_within_weekly = \"1m\"\n\
        keep_within_monthly = \"1y\"\nkeep_within_yearly = \"75y\"";
    let days = kept(policy, "UTC", &century);
    assert!(days.starts_with(&[0, 1, 2, 3, 4, 5, 6, 13, 20, 21, 27, 52]), "{days:?}");
    assert_eq!(days.len(), 7 + 3 + 12 + 74);
}

#[test]
fn weeks_are_iso_weeks_and_years_are_those_of_the_calendar() {
    hold(
        "UTC",
        &[
            // Friday 1 January 2027 is in week 53 of 2026, with Monday 28 December.
            (
                "keep_weekly = 2",
                &["2027-01-04T12:00", "2027-01-01T12:00", "2026-12-28T12:00", "2026-12-27T12:00"],
                &[0, 1],
            ),
            (
                "keep_yearly = 2",
                &["2027-01-04T12:00", "2027-01-01T12:00", "2026-12-28T12:00", "2026-12-27T12:00"],
                &[0, 2],
            ),
            // Monday 30 December 2024 is in week 1 of 2025, with Sunday 5 January.
            (
                "keep_weekly = 2",
                &["2025-01-05T23:59", "2024-12-30T00:00", "2024-12-29T23:59"],
                &[0, 2],
            ),
            (
                "keep_yearly = 2",
                &["2025-01-05T23:59", "2024-12-30T00:00", "2024-12-29T23:59"],
                &[0, 1],
            ),
            (
                "keep_monthly = 2",
                &["2025-01-05T23:59", "2024-12-30T00:00", "2024-12-29T23:59"],
                &[0, 1],
            ),
            // Week 1 of one year is not week 1 of the next, nor is week 53 that of another.
            (
                "keep_weekly = 2",
                &["2026-01-01T12:00", "2025-01-01T12:00", "2024-01-01T12:00"],
                &[0, 1],
            ),
            (
                "keep_weekly = 2",
                &["2027-01-01T12:00", "2021-01-01T12:00", "2020-12-31T12:00"],
                &[0, 1],
            ),
            // 1 January 2022 is a Saturday of week 52 of 2021; 2021 has no week 53.
            (
                "keep_weekly = 3",
                &["2022-01-03T00:00", "2022-01-02T23:59", "2021-12-27T00:00", "2021-12-26T23:59"],
                &[0, 1, 3],
            ),
            (
                "keep_within_weekly = \"14d\"",
                &[
                    "2022-01-03T00:00",
                    "2022-01-02T23:59",
                    "2021-12-27T00:00",
                    "2021-12-26T23:59",
                    "2021-12-20T00:00",
                ],
                &[0, 1, 3],
            ),
            (
                "keep_quarterly = 3",
                &["2026-07-01T00:00", "2026-06-30T23:59", "2026-04-01T00:00", "2026-03-31T23:59"],
                &[0, 1, 3],
            ),
            (
                "keep_quarterly = 2",
                &["2026-01-01T00:00", "2025-12-31T23:59", "2025-10-01T00:00"],
                &[0, 1],
            ),
        ],
    );
}

#[test]
fn a_month_that_is_too_short_ends_on_its_last_day() {
    hold(
        "UTC",
        &[
            (
                "keep_within = \"1m\"",
                &["2026-03-31T12:00", "2026-02-28T12:01", "2026-02-28T12:00"],
                &[0, 1],
            ),
            (
                "keep_within = \"1m\"",
                &["2026-03-29T12:00", "2026-02-28T12:01", "2026-02-28T12:00"],
                &[0, 1],
            ),
            (
                "keep_within = \"1m\"",
                &["2024-03-31T12:00", "2024-02-29T12:01", "2024-02-29T12:00"],
                &[0, 1],
            ),
            (
                "keep_within = \"1m\"",
                &["2026-05-31T12:00", "2026-04-30T12:01", "2026-04-30T12:00"],
                &[0, 1],
            ),
            (
                "keep_within = \"3m\"",
                &["2026-05-31T12:00", "2026-02-28T12:01", "2026-02-28T12:00"],
                &[0, 1],
            ),
            (
                "keep_within = \"1m\"",
                &["2026-01-31T12:00", "2025-12-31T12:01", "2025-12-31T12:00"],
                &[0, 1],
            ),
            // Months first, days after, hours last.
            (
                "keep_within = \"1m1d\"",
                &["2026-03-31T12:00", "2026-02-27T12:01", "2026-02-27T12:00"],
                &[0, 1],
            ),
            (
                "keep_within = \"1m1d13h\"",
                &["2026-03-31T12:00", "2026-02-26T23:01", "2026-02-26T23:00"],
                &[0, 1],
            ),
            // The last days of months are their newest.
            (
                "keep_monthly = 4",
                &[
                    "2026-03-31T23:59",
                    "2026-03-01T00:00",
                    "2026-02-28T23:59",
                    "2026-02-01T00:00",
                    "2026-01-31T23:59",
                ],
                &[0, 2, 4],
            ),
        ],
    );
}

#[test]
fn leap_days_are_days() {
    hold(
        "UTC",
        &[
            (
                "keep_within = \"1y\"",
                &["2024-02-29T12:00", "2023-02-28T12:01", "2023-02-28T12:00"],
                &[0, 1],
            ),
            (
                "keep_within = \"4y\"",
                &["2024-02-29T12:00", "2020-02-29T12:01", "2020-02-29T12:00"],
                &[0, 1],
            ),
            (
                "keep_within = \"12m\"",
                &["2025-02-28T12:00", "2024-02-29T12:00", "2024-02-28T12:01", "2024-02-28T12:00"],
                &[0, 1, 2],
            ),
            (
                "keep_within = \"1d\"",
                &["2024-03-01T12:00", "2024-02-29T12:01", "2024-02-29T12:00"],
                &[0, 1],
            ),
            (
                "keep_within = \"366d\"",
                &["2025-01-01T12:00", "2024-01-01T12:01", "2024-01-01T12:00"],
                &[0, 1],
            ),
            (
                "keep_daily = 3",
                &["2024-03-01T00:00", "2024-02-29T23:59", "2024-02-29T00:00", "2024-02-28T23:59"],
                &[0, 1, 3],
            ),
            (
                "keep_monthly = 2",
                &["2024-03-01T00:00", "2024-02-29T23:59", "2024-02-29T00:00"],
                &[0, 1],
            ),
            // No leap day in 2100.
            (
                "keep_within = \"1m\"",
                &["2100-03-30T12:00", "2100-02-28T12:01", "2100-02-28T12:00"],
                &[0, 1],
            ),
            (
                "keep_yearly = 2",
                &["2024-12-31T23:59", "2024-02-29T12:00", "2023-12-31T23:59"],
                &[0, 2],
            ),
        ],
    );
}

#[test]
fn periods_are_those_of_the_time_zone() {
    let times = &["2026-11-21T12:00", "2026-11-20T23:30", "2026-11-20T12:00", "2026-11-19T12:00"];
    hold("UTC", &[("keep_daily = 2", times, &[0, 1])]);
    // In Oslo, 23:30 is half past midnight of the next day.
    hold("Europe/Oslo", &[("keep_daily = 2", times, &[0, 2])]);
    // Half past midnight of New Year in Oslo; a day, week, month, quarter and year later than in
    // New York.
    let times = &["2026-12-31T23:30", "2026-12-31T22:30", "2026-12-30T22:30"];
    let rules = ["keep_daily = 2", "keep_monthly = 2", "keep_quarterly = 2", "keep_yearly = 2"];
    for rule in rules {
        hold("Europe/Oslo", &[(rule, times, &[0, 1])]);
    }
    for rule in ["keep_monthly = 1", "keep_quarterly = 1", "keep_yearly = 1"] {
        hold("America/New_York", &[(rule, times, &[0])]);
    }
    // Monday in Oslo, Sunday in New York.
    let times = &["2026-11-22T23:30", "2026-11-22T22:30", "2026-11-15T12:00"];
    hold("Europe/Oslo", &[("keep_weekly = 2", times, &[0, 1])]);
    hold("America/New_York", &[("keep_weekly = 2", times, &[0, 2])]);
    // Hours of a zone that is half an hour off.
    let times = &["2026-11-21T12:40", "2026-11-21T12:20", "2026-11-21T11:40"];
    hold("Europe/Oslo", &[("keep_hourly = 2", times, &[0, 2])]);
    hold("Asia/Kolkata", &[("keep_hourly = 2", times, &[0, 1])]);
}

#[test]
fn when_the_clocks_go_forward_the_day_is_shorter() {
    // Oslo skips 02:00 to 03:00 on 29 March 2026, at 01:00 UTC.
    hold(
        "Europe/Oslo",
        &[
            (
                "keep_daily = 3",
                &["2026-03-29T21:59", "2026-03-28T23:00", "2026-03-28T22:59"],
                &[0, 2],
            ),
            (
                "keep_daily = 3",
                &["2026-03-29T22:00", "2026-03-29T21:59", "2026-03-28T23:00", "2026-03-28T22:59"],
                &[0, 1, 3],
            ),
            (
                "keep_hourly = 3",
                &["2026-03-29T01:59", "2026-03-29T01:00", "2026-03-29T00:59", "2026-03-29T00:00"],
                &[0, 2, 3],
            ),
            // A day back is 23 hours, 24 hours are 24 hours.
            (
                "keep_within = \"1d\"",
                &["2026-03-29T20:00", "2026-03-28T21:01", "2026-03-28T21:00", "2026-03-28T20:01"],
                &[0, 1],
            ),
            (
                "keep_within = \"24h\"",
                &["2026-03-29T20:00", "2026-03-28T21:01", "2026-03-28T21:00", "2026-03-28T20:01"],
                &[0, 1, 2, 3],
            ),
            // 02:30 of that day was skipped, and means 03:00, as it does for a schedule.
            (
                "keep_within = \"1d\"",
                &["2026-03-30T00:30", "2026-03-29T01:01", "2026-03-29T01:00"],
                &[0, 1],
            ),
            (
                "keep_within = \"1m\"",
                &["2026-04-29T00:30", "2026-03-29T01:01", "2026-03-29T01:00"],
                &[0, 1],
            ),
            // The same from a day of winter time.
            (
                "keep_within = \"8m\"",
                &["2026-11-29T01:30", "2026-03-29T01:01", "2026-03-29T01:00"],
                &[0, 1],
            ),
        ],
    );
    // New York skips 02:00 to 03:00 on 8 March 2026, at 07:00 UTC.
    hold(
        "America/New_York",
        &[
            (
                "keep_daily = 3",
                &["2026-03-09T03:59", "2026-03-08T05:00", "2026-03-08T04:59"],
                &[0, 2],
            ),
            (
                "keep_hourly = 3",
                &["2026-03-08T07:59", "2026-03-08T07:00", "2026-03-08T06:59", "2026-03-08T06:00"],
                &[0, 2, 3],
            ),
            (
                "keep_within = \"1d\"",
                &["2026-03-08T20:00", "2026-03-07T21:01", "2026-03-07T21:00"],
                &[0, 1],
            ),
            (
                "keep_within = \"1d\"",
                &["2026-03-09T06:30", "2026-03-08T07:01", "2026-03-08T07:00"],
                &[0, 1],
            ),
        ],
    );
    // Lord Howe skips half an hour only, 02:00 to 02:30 on 4 October 2026, at 15:30 UTC of the day
    // before.
    hold(
        "Australia/Lord_Howe",
        &[
            (
                "keep_daily = 3",
                &["2026-10-04T12:59", "2026-10-03T13:30", "2026-10-03T13:29"],
                &[0, 2],
            ),
            (
                "keep_hourly = 3",
                &["2026-10-03T16:00", "2026-10-03T15:30", "2026-10-03T15:29", "2026-10-03T14:30"],
                &[0, 1, 2],
            ),
            (
                "keep_within = \"1d\"",
                &["2026-10-04T05:00", "2026-10-03T05:31", "2026-10-03T05:30"],
                &[0, 1],
            ),
            (
                "keep_within = \"1d\"",
                &["2026-10-04T15:15", "2026-10-03T15:31", "2026-10-03T15:30"],
                &[0, 1],
            ),
        ],
    );
}

#[test]
fn when_the_clocks_go_back_the_day_is_longer_and_the_hour_that_comes_twice_is_one() {
    // Oslo repeats 02:00 to 03:00 on 25 October 2026, at 01:00 UTC.
    hold(
        "Europe/Oslo",
        &[
            (
                "keep_daily = 3",
                &["2026-10-25T22:59", "2026-10-24T22:00", "2026-10-24T21:59"],
                &[0, 2],
            ),
            (
                "keep_hourly = 3",
                &["2026-10-25T02:00", "2026-10-25T01:30", "2026-10-25T00:30", "2026-10-24T23:59"],
                &[0, 1, 3],
            ),
            // A day back is 25 hours.
            (
                "keep_within = \"1d\"",
                &["2026-10-25T20:00", "2026-10-24T19:01", "2026-10-24T19:00", "2026-10-24T18:59"],
                &[0, 1],
            ),
            (
                "keep_within = \"24h\"",
                &["2026-10-25T20:00", "2026-10-24T20:01", "2026-10-24T20:00"],
                &[0, 1],
            ),
            // 02:30 came twice, and is the first, which keeps more.
            (
                "keep_within = \"1d\"",
                &["2026-10-26T01:30", "2026-10-25T01:30", "2026-10-25T00:31", "2026-10-25T00:30"],
                &[0, 1, 2],
            ),
            // From within the hour that comes again, hours are hours.
            (
                "keep_within = \"2h\"",
                &["2026-10-25T01:30", "2026-10-24T23:31", "2026-10-24T23:30"],
                &[0, 1],
            ),
            (
                "keep_within = \"1h\"",
                &["2026-10-25T01:30", "2026-10-25T00:31", "2026-10-25T00:30"],
                &[0, 1],
            ),
        ],
    );
    // New York repeats 01:00 to 02:00 on 1 November 2026, at 06:00 UTC.
    hold(
        "America/New_York",
        &[
            (
                "keep_daily = 3",
                &["2026-11-02T04:59", "2026-11-01T04:00", "2026-11-01T03:59"],
                &[0, 2],
            ),
            (
                "keep_monthly = 2",
                &["2026-11-01T04:00", "2026-11-01T03:59", "2026-10-31T12:00"],
                &[0, 1],
            ),
            (
                "keep_hourly = 3",
                &["2026-11-01T07:00", "2026-11-01T06:30", "2026-11-01T05:30", "2026-11-01T04:59"],
                &[0, 1, 3],
            ),
            (
                "keep_within = \"1d\"",
                &["2026-11-01T20:00", "2026-10-31T19:01", "2026-10-31T19:00"],
                &[0, 1],
            ),
        ],
    );
    // Lord Howe repeats 01:30 to 02:00 on 5 April 2026, at 15:00 UTC of the day before.
    hold(
        "Australia/Lord_Howe",
        &[
            (
                "keep_daily = 3",
                &["2026-04-05T13:29", "2026-04-04T13:00", "2026-04-04T12:59"],
                &[0, 2],
            ),
            (
                "keep_hourly = 4",
                &[
                    "2026-04-04T15:30",
                    "2026-04-04T15:15",
                    "2026-04-04T14:45",
                    "2026-04-04T14:00",
                    "2026-04-04T13:59",
                ],
                &[0, 1, 4],
            ),
            (
                "keep_within = \"1d\"",
                &["2026-04-05T05:30", "2026-04-04T05:01", "2026-04-04T05:00"],
                &[0, 1],
            ),
            (
                "keep_within = \"1d\"",
                &["2026-04-05T15:15", "2026-04-04T14:46", "2026-04-04T14:45"],
                &[0, 1],
            ),
        ],
    );
}

#[test]
fn before_the_calendar_begins_nothing_is_too_old() {
    let years: Period = "100000y".parse().unwrap();
    let beginning = DateTime::<Utc>::MIN_UTC + TimeDelta::days(366);
    assert_eq!(years.before(beginning, Tz::UTC), None);
    assert!(years.before(at("2026-11-21T12:00"), Tz::UTC).is_some());
}
