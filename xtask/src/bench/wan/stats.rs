//! What the runs of one profile, source and peer have shown: a number for each question, and the medians over runs.

use serde::Serialize;

use super::super::table::Summary;
use super::SocketBytes;
use super::link::Fade;
use super::viewer::View;

/// One run's numbers. Ages, round trips and recovery in ms.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct RunStats {
    pub(crate) age_p50: f64,
    pub(crate) age_p99: f64,
    pub(crate) age_max: f64,
    pub(crate) frames_per_second: f64,
    /// Of frames and download together.
    pub(crate) mbit: f64,
    pub(crate) input_p50: f64,
    pub(crate) input_p99: f64,
    /// From the end of a fade until frames are as old as before it, and stay so.
    pub(crate) recovery: Option<f64>,
    /// KiB, medians over time: in the agent's socket, in the proxy's two.
    pub(crate) agent_unsent: f64,
    pub(crate) proxy_received: f64,
    pub(crate) proxy_unsent: f64,
    /// Of the peer: cores in use.
    pub(crate) cores: f64,
}

/// What comes before this, in ms after the link's start, is not counted: connections find their speed.
pub(crate) const WARM_UP: f64 = 4_000.0;
/// Ages that exceed those before a fade by less are as before, in ms.
const NORMAL: f64 = 50.0;
/// How long they have to stay so, in ms.
const SETTLED: f64 = 1_000.0;

/// `end`: of the run, in ms after the link's start.
pub(crate) fn run_stats(
    view: &View,
    standing: &[SocketBytes],
    fade: Option<Fade>,
    end: f64,
    cores: f64,
) -> RunStats {
    let seconds = (end - WARM_UP) / 1e3;
    let of = |seen: &[(f64, f64)]| {
        let counted = seen.iter().filter(|(at, _)| (WARM_UP..end).contains(at));
        let mut values: Vec<f64> = counted.map(|(_, value)| *value).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let (ages, inputs) = (of(&view.frames), of(&view.inputs));
    let bins = view.bytes.iter().skip((WARM_UP / 100.0) as usize);
    let kib = |value: fn(&SocketBytes) -> u64| {
        let mut values: Vec<f64> =
            standing.iter().filter(|it| it.at >= WARM_UP).map(|it| value(it) as f64 / 1024.0).collect();
        values.sort_by(f64::total_cmp);
        at(&values, 0.5)
    };
    RunStats {
        age_p50: at(&ages, 0.5),
        age_p99: at(&ages, 0.99),
        age_max: at(&ages, 1.0),
        frames_per_second: ages.len() as f64 / seconds,
        mbit: bins.sum::<u64>() as f64 * 8.0 / 1e6 / seconds,
        input_p50: at(&inputs, 0.5),
        input_p99: at(&inputs, 0.99),
        recovery: fade.and_then(|fade| recovery(&view.frames, fade, end)),
        agent_unsent: kib(|it| it.agent_unsent),
        proxy_received: kib(|it| it.proxy_received),
        proxy_unsent: kib(|it| it.proxy_unsent),
        cores,
    }
}

/// A quantile of sorted values; 0 where there is none.
fn at(sorted: &[f64], share: f64) -> f64 {
    sorted.get(((sorted.len().saturating_sub(1)) as f64 * share).round() as usize).copied().unwrap_or(0.0)
}

/// The longest of the fades that are whole within the run and have a second after them.
fn recovery(frames: &[(f64, f64)], fade: Fade, end: f64) -> Option<f64> {
    let (every, long) = (fade.every_s * 1e3, fade.for_s * 1e3);
    let begins =
        (1..).map(|number| f64::from(number) * every).take_while(|begin| begin + long + SETTLED < end);
    let after = begins.filter_map(|begin| {
        let mut before: Vec<f64> =
            frames.iter().filter(|(at, _)| (begin - 3e3..begin).contains(at)).map(|(_, age)| *age).collect();
        before.sort_by(f64::total_cmp);
        let normal = at(&before, 0.5) + NORMAL;
        let over = begin + long;
        let next = (begin + every).min(end);
        let late = frames.iter().filter(|(at, age)| (over..next).contains(at) && *age > normal);
        Some(late.map(|(at, _)| at - over).fold(0.0, f64::max)).filter(|_| !before.is_empty())
    });
    after.max_by(f64::total_cmp)
}

/// The medians over runs, with what is lowest and highest.
pub(crate) fn summary(runs: &[&RunStats], value: impl Fn(&RunStats) -> f64) -> Option<Summary> {
    Summary::of(runs.iter().map(|run| value(run)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(age: impl Fn(f64) -> f64) -> Vec<(f64, f64)> {
        (0..2000).map(|frame| f64::from(frame) * 10.0).map(|at| (at, age(at))).collect()
    }

    #[test]
    fn a_recovery_lasts_until_frames_stay_as_young_as_before() {
        let fade = Fade { every_s: 10.0, for_s: 3.0, mbit: 1.0 };
        let seen = frames(|at| if (10_000.0..13_500.0).contains(&at) { 900.0 } else { 40.0 });
        assert_eq!(recovery(&seen, fade, 20_000.0), Some(490.0));
        assert_eq!(recovery(&frames(|_| 40.0), fade, 20_000.0), Some(0.0));
        let stays = frames(|at| if at > 10_000.0 { 900.0 } else { 40.0 });
        assert_eq!(recovery(&stays, fade, 20_000.0), Some(6_990.0));
    }

    #[test]
    fn what_comes_while_the_link_warms_up_is_not_counted() {
        let view = View { frames: frames(|at| if at < WARM_UP { 5e3 } else { 20.0 }), ..View::default() };
        let found = run_stats(&view, &[], None, 20_000.0, 0.0);
        assert_eq!((found.age_p50, found.age_max, found.frames_per_second), (20.0, 20.0, 100.0));
    }
}
