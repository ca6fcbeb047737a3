//! Whose turn it is, as the whole scheduler sees to it.

use std::collections::BTreeMap;

use super::*;

/// A world without trouble.
async fn world(tasks: impl IntoIterator<Item = (usize, &'static str)>) -> Arc<World> {
    let world = World::new(1);
    for (index, user) in tasks {
        world.store(new_task(index, user, 1));
        sleep(Duration::from_millis(1)).await;
    }
    world
}

fn start(world: &Arc<World>, number: u32, settings: &Settings) -> Scheduler {
    world.lock().lead(number);
    let side = world.side(number);
    Scheduler::start(side.clone(), side, settings.clone())
}

/// Waits until all is over.
async fn ended(world: &World) {
    let begun = Instant::now();
    while world
        .lock()
        .all()
        .any(|record| !record.head.state.is_terminal())
    {
        assert!(begun.elapsed() < CALM);
        sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(world.lock().broken, Vec::<String>::new());
}

fn order(world: &World) -> Vec<String> {
    let inner = world.lock();
    inner.reserved.iter().map(TaskId::to_string).collect()
}

#[test]
fn a_scheduler_that_starts_anew_keeps_to_the_order_and_to_the_limit() {
    simulated(async {
        // Their ids are not in the order of their times.
        let world = world([8, 3, 6, 1, 7, 2].map(|index| (index, "ann"))).await;
        let settings = Settings {
            max_active: 1,
            ..Settings::default()
        };
        for number in 1..200 {
            let scheduler = start(&world, number, &settings);
            sleep(Duration::from_secs(7)).await;
            scheduler.stop().await;
        }
        ended(&world).await;
        assert_eq!(world.lock().most.0, 1);
        let expected = [8, 3, 6, 1, 7, 2].map(|index| format!("task{index}"));
        assert_eq!(order(&world), expected);
    });
}

#[test]
fn many_tasks_of_one_user_do_not_delay_the_only_one_of_another() {
    simulated(async {
        let anns = (0..200).map(|index| (index, "ann"));
        let world = world(anns.chain([(500, "bob")])).await;
        let settings = Settings {
            max_active: 4,
            ..Settings::default()
        };
        let _scheduler = start(&world, 1, &settings);
        ended(&world).await;
        let turn = order(&world).iter().position(|id| id == "task500");
        // Four go at once, and which of their requests is the first is chance.
        assert!(turn < Some(4), "{turn:?}");
    });
}

#[test]
fn what_there_is_no_room_for_is_tried_when_another_has_ended_and_seldom_otherwise() {
    simulated(async {
        let world = world((0..40).map(|index| (index, "ann"))).await;
        world.lock().quota = Some(2);
        let settings = Settings::default();
        let _scheduler = start(&world, 1, &settings);
        let begun = Instant::now();
        ended(&world).await;
        let took = begun.elapsed();
        let inner = world.lock();
        // Each lives for 30 seconds or so, two at a time.
        assert!(took < Duration::from_mins(15), "{took:?}");
        // Every second each would have been 40 times as many.
        let refusals = inner.found_full.len() as u64;
        assert!(refusals < took.as_secs() * 2, "{refusals} in {took:?}");
        for record in inner.all() {
            let lines = record
                .logs
                .iter()
                .flat_map(|log| &log.system_logs)
                .flatten();
            let full = lines.filter(|line| line.contains("waits: full")).count();
            assert!(full <= 1, "{:?}", record.logs);
        }
    });
}

#[test]
fn what_there_is_never_room_for_does_not_keep_others_waiting() {
    simulated(async {
        let world = world((0..7).map(|index| (index, "ann"))).await;
        world.lock().quota = Some(1);
        let large: TaskId = "task0".parse().unwrap();
        world.lock().too_large.insert(large.clone());
        let _scheduler = start(&world, 1, &Settings::default());
        let begun = Instant::now();
        let left = |world: &World| {
            let inner = world.lock();
            let left = inner
                .all()
                .filter(|record| record.head.id != large && !record.head.state.is_terminal());
            left.count()
        };
        // When one ends, the next begins, without a wait by the clock between.
        let mut idle = Duration::ZERO;
        while left(&world) > 0 {
            assert!(begun.elapsed() < CALM);
            let runs = world.lock().pods.values().any(|pod| !pod.phase.is_over());
            sleep(Duration::from_millis(100)).await;
            idle += Duration::from_millis(if runs { 0 } else { 100 });
        }
        // By the clock it would be 87 seconds.
        assert!(idle < Duration::from_secs(30), "{idle:?}");
    });
}

#[test]
fn what_waits_for_its_turn_says_why_once_for_each_reason() {
    simulated(async {
        let users = [(0, "ann"), (1, "ann"), (2, "bob"), (3, "bob"), (4, "cid")];
        let world = world(users).await;
        let waiting = |world: &World| {
            let inner = world.lock();
            let lines = inner
                .all()
                .filter(|record| record.head.attempt == 0)
                .map(|record| {
                    let lines = record.logs[0].system_logs.clone().unwrap_or_default();
                    (record.head.id.to_string(), lines.join("|"))
                });
            lines.collect::<BTreeMap<_, _>>()
        };
        let none = Settings {
            max_active: 0,
            ..Settings::default()
        };
        let scheduler = start(&world, 1, &none);
        sleep(Duration::from_secs(5)).await;
        assert!(waiting(&world).values().all(String::is_empty));
        sleep(Duration::from_mins(10)).await;
        let said = waiting(&world);
        let nothing = "waits: no task is started at present (limits.max_active is 0)";
        assert!(said.values().all(|lines| lines == nothing), "{said:#?}");
        scheduler.stop().await;

        // One of each user may run, two in all: the first of ann and of bob go.
        let few = Settings {
            max_active: 2,
            max_active_per_user: Some(1),
            ..Settings::default()
        };
        // Nothing ends.
        world.lock().asleep = true;
        let _scheduler = start(&world, 2, &few);
        sleep(Duration::from_mins(10)).await;
        let said = waiting(&world);
        let own = format!(
            "{nothing}|waits: as many tasks of its user are active as may be (limits.max_active_per_user is 1)"
        );
        let all = format!(
            "{nothing}|waits: as many tasks are active as may be in all (limits.max_active is 2)"
        );
        let expected = [("task1", &own), ("task3", &own), ("task4", &all)];
        let expected = expected.map(|(id, lines)| (id.to_owned(), lines.clone()));
        assert_eq!(said, expected.into());
    });
}
