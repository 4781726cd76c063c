//! Credentials that may write and not delete are a normal case: another identity prunes.

use crate::support::s3_proxy::{Fault, Op, S3Proxy};
use crate::support::site::{Site, s3_storage};
use crate::support::stores::{Server, fresh};
use crate::support::{S3, s3};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_refuses_to_delete_takes_backups_without_complaint() {
    let bucket = fresh("append-only");
    Server::S3s.client().create_bucket().bucket(&bucket).send().await.unwrap();
    let proxy = S3Proxy::before(&Server::S3s.endpoint()).await;
    for op in [Op::Delete, Op::Abort] {
        proxy.inject(op, Fault::Say(403, "AccessDenied"), usize::MAX);
    }
    let server = S3 { endpoint: proxy.endpoint.clone(), ..s3("S3S") };
    let site = Site::new(&format!(
        r#"
[sources.dump]
type = "command"
command = ["echo", "words"]
[strategies.daily]
sources = ["dump"]
storages = ["offsite"]
{}"#,
        s3_storage("offsite", &server, &bucket)
    ));
    for count in 1..=3 {
        assert_eq!(site.run(0).json()["outcome"], "success", "{count}");
        assert_eq!(site.ids().len(), count);
    }
    site.backup(["verify", "--read-data"]).expect(0);
    let check = site.backup(["check", "--json"]).expect(0).json();
    let findings = check["instances"][0]["storages"][0]["findings"].as_array().unwrap();
    let delete = findings.iter().find(|finding| finding["subject"] == "delete").unwrap();
    assert_eq!(delete["level"], "warning", "{delete}");
}
