//! The client of the `tes` crate against the server at `TESK_SERVER`.

use std::collections::BTreeMap;
use std::time::Duration;

use tes::v1::Client;
use tes::v1::types::requests::{GetTaskParams, ListTasksParams, Task, View};
use tes::v1::types::responses::TaskResponse;
use tes::v1::types::task::{Executor, Input, IoType, State};

const NO_RETRIES: [Duration; 0] = [];

fn task(command: &[&str], tag: &str) -> Task {
    Task {
        name: Some("from the tes crate".into()),
        inputs: Some(vec![Input {
            name: None,
            description: None,
            url: None,
            path: "/data/words".into(),
            ty: IoType::File,
            content: Some("b\na\n".into()),
            streamable: None,
        }]),
        executors: vec![Executor {
            image: "busybox:1.37".into(),
            command: command.iter().map(|s| (*s).to_owned()).collect(),
            ..Executor::default()
        }],
        tags: Some(BTreeMap::from([("client".to_owned(), tag.to_owned())])),
        ..Task::default()
    }
}

async fn state(client: &Client, id: &str) -> State {
    match client.get_task(id, None, NO_RETRIES).await.expect("get") {
        TaskResponse::Minimal(task) => task.state.expect("a state"),
        other => panic!("not minimal: {other:?}"),
    }
}

async fn becomes(client: &Client, id: &str, wanted: State) {
    for _ in 0..300 {
        let now = state(client, id).await;
        if now == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("task {id} did not become {wanted:?}");
}

#[tokio::test]
async fn the_tes_crate_creates_reads_lists_and_cancels() {
    let server = std::env::var("TESK_SERVER").expect("TESK_SERVER names the server");
    let client = Client::builder()
        .url_from_string(format!("{server}/ga4gh/tes/v1"))
        .expect("a url")
        .try_build()
        .expect("a client");

    let info = client.service_info(NO_RETRIES).await.expect("service-info");
    assert_eq!(info.ty().group, "org.ga4gh");

    let sort = client.create_task(&task(&["sort", "/data/words"], "rust"), NO_RETRIES).await;
    let sort = sort.expect("create").id;
    becomes(&client, &sort, State::Complete).await;
    let params = GetTaskParams { view: View::Full };
    let TaskResponse::Full(full) =
        client.get_task(&sort, Some(&params), NO_RETRIES).await.expect("get")
    else {
        panic!("not full")
    };
    let log = &full.logs.expect("logs")[0].logs[0];
    assert_eq!((log.exit_code, log.stdout.as_deref()), (0, Some("a\nb\n")));

    let slow = client.create_task(&task(&["sleep", "60"], "rust"), NO_RETRIES).await;
    let slow = slow.expect("create").id;
    becomes(&client, &slow, State::Running).await;
    client.cancel_task(&slow, NO_RETRIES).await.expect("cancel");
    becomes(&client, &slow, State::Canceled).await;

    // How crankshaft polls.
    let params = ListTasksParams {
        tag_keys: Some(vec!["client".into()]),
        tag_values: Some(vec!["rust".into()]),
        page_size: Some(2047),
        view: Some(View::Full),
        ..ListTasksParams::default()
    };
    let page = client.list_tasks(Some(&params), NO_RETRIES).await.expect("list");
    let states: Vec<_> = page
        .tasks
        .iter()
        .map(|t| match t {
            TaskResponse::Full(t) => t.state.expect("a state"),
            other => panic!("not full: {other:?}"),
        })
        .collect();
    assert_eq!(states, [State::Canceled, State::Complete]);
}
