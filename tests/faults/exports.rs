//! Workers that crash during a usage export: the result is one file and one mail.

use std::path::{Path, PathBuf};

use super::seeds;
use crate::harness::cluster::{Cluster, ClusterOptions};

fn list_files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(directory) else {
        return found;
    };
    for entry in entries {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => found.extend(list_files(&path)),
            false => found.push(path),
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_with_crashed_workers_is_one_file_and_one_mail() {
    for seed in seeds(1) {
        let setup = ClusterOptions {
            workers: 0,
            ..ClusterOptions::default()
        };
        let mut cluster = Cluster::start(seed, setup).await;

        let path = "/api/v1/billing/usage/export";
        let export = cluster.client.get(path).await.expect(202);

        for _ in 0..2 {
            cluster
                .run_worker_until_crash("misc", "export.stored=1")
                .await;
            cluster
                .run_worker_until_crash("misc", "export.uncommitted=1")
                .await;
        }
        let mails = "select count(*) from emails";
        assert_eq!(cluster.query_number(mails).await, 0, "seed {seed}");

        cluster.start_worker();
        let open = "select count(*) from jobs where state <> 'done'";
        cluster
            .wait_until("the export is done", open, |n| n == 0)
            .await;
        assert_eq!(cluster.query_number(mails).await, 1, "seed {seed}");

        let directory = cluster.services.temporary_dir().expect("a directory");
        let exported = list_files(&directory.join("store").join("exports"));

        let id = export["export_id"].as_str().expect("an id");
        assert_eq!(exported.len(), 1, "{exported:?}");
        let name = exported[0].file_name().expect("a name");
        assert_eq!(name.to_string_lossy(), format!("{id}.csv"));
        let text = std::fs::read_to_string(&exported[0]).expect("a file");
        assert!(text.starts_with("session_id,"), "{text}");
        assert_eq!(list_files(&directory.join("mail")).len(), 1, "seed {seed}");
        cluster.close().await;
    }
}
