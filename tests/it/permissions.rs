//! Credentials that may write and not delete are a normal case: another identity prunes. The
//! identities are those of SeaweedFS in `tests/servers`, and are what they claim to be.

use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};

use rustix::process::Signal;

use crate::support::daemon::until;
use crate::support::s3_proxy::{Fault, Op, S3Proxy};
use crate::support::site::{Site, s3_storage};
use crate::support::stores::{Identity, Server, fresh};
use crate::support::{S3, s3};

/// A fresh bucket of SeaweedFS, and a client that may do everything there.
async fn bucket() -> (String, Client) {
    let (bucket, owner) = (fresh("permissions"), Server::SeaweedFs.client());
    owner.create_bucket().bucket(&bucket).send().await.unwrap();
    put(&owner, &bucket, "old").await;
    (bucket, owner)
}

async fn put(client: &Client, bucket: &str, key: &str) {
    let body = key.as_bytes().to_vec();
    client.put_object().bucket(bucket).key(key).body(body.into()).send().await.unwrap();
}

async fn keys(client: &Client, bucket: &str) -> Vec<String> {
    let page = client.list_objects_v2().bucket(bucket).send().await.unwrap();
    page.contents().iter().map(|object| object.key().unwrap().to_owned()).collect()
}

/// Asserts that a request was refused. The answer to HEAD has no words.
fn assert_denied<T, E>(answer: Result<T, SdkError<E, HttpResponse>>, request: &str)
where
    E: ProvideErrorMetadata + std::fmt::Debug,
{
    let Err(error) = answer else { panic!("{request} was allowed") };
    let status = error.raw_response().map(|response| response.status().as_u16());
    assert_eq!(status, Some(403), "{request}: {error:?}");
    if request != "HEAD" {
        assert_eq!(error.code(), Some("AccessDenied"), "{request}: {error:?}");
    }
}

/// Begins an upload and sends its one part, which both identities may.
async fn begin(client: &Client, bucket: &str, key: &str) -> (String, CompletedMultipartUpload) {
    let begun = client.create_multipart_upload().bucket(bucket).key(key).send().await.unwrap();
    let id = begun.upload_id().unwrap();
    let part = client.upload_part().bucket(bucket).key(key).upload_id(id).part_number(1);
    let sent = part.body(b"part".to_vec().into()).send().await.unwrap();
    let part = CompletedPart::builder().part_number(1).e_tag(sent.e_tag().unwrap()).build();
    (id.to_owned(), CompletedMultipartUpload::builder().parts(part).build())
}

async fn assert_puts_and_does_not_delete(client: &Client, bucket: &str) {
    put(client, bucket, "new").await;
    // A replaced object is as good as deleted where the bucket keeps no versions.
    put(client, bucket, "new").await;
    let (id, parts) = begin(client, bucket, "parts").await;
    let complete = client.complete_multipart_upload().bucket(bucket).key("parts").upload_id(id);
    complete.multipart_upload(parts).send().await.unwrap();
    assert_denied(client.delete_object().bucket(bucket).key("old").send().await, "DELETE");
    let (id, _) = begin(client, bucket, "begun").await;
    let abort = client.abort_multipart_upload().bucket(bucket).key("begun").upload_id(id);
    assert_denied(abort.send().await, "abort");
    assert_denied(client.delete_bucket().bucket(bucket).send().await, "delete the bucket");
    assert_denied(client.create_bucket().bucket(fresh("made")).send().await, "make a bucket");
}

#[tokio::test]
async fn the_no_delete_key_deletes_nothing() {
    let (bucket, owner) = bucket().await;
    let client = Server::SeaweedFs.client_as(Identity::NoDelete);
    assert_puts_and_does_not_delete(&client, &bucket).await;
    assert_eq!(keys(&owner, &bucket).await, ["new", "old", "parts"]);
    assert_eq!(keys(&client, &bucket).await, ["new", "old", "parts"]);
    let got = client.get_object().bucket(&bucket).key("old").send().await.unwrap();
    assert_eq!(got.body.collect().await.unwrap().to_vec(), b"old");
    client.head_object().bucket(&bucket).key("new").send().await.unwrap();
    client.head_bucket().bucket(&bucket).send().await.unwrap();
    let listed = client.list_multipart_uploads().bucket(&bucket).send().await.unwrap();
    let [upload] = listed.uploads() else { panic!("{listed:?}") };
    let id = upload.upload_id().unwrap();
    let parts = client.list_parts().bucket(&bucket).key("begun").upload_id(id);
    assert_eq!(parts.send().await.unwrap().parts().len(), 1);
}

#[tokio::test]
async fn the_put_only_key_only_puts() {
    let (bucket, owner) = bucket().await;
    let client = Server::SeaweedFs.client_as(Identity::PutOnly);
    assert_puts_and_does_not_delete(&client, &bucket).await;
    assert_eq!(keys(&owner, &bucket).await, ["new", "old", "parts"]);
    for key in ["old", "new", "missing"] {
        assert_denied(client.get_object().bucket(&bucket).key(key).send().await, "GET");
        assert_denied(client.head_object().bucket(&bucket).key(key).send().await, "HEAD");
    }
    assert_denied(client.head_bucket().bucket(&bucket).send().await, "HEAD");
    assert_denied(client.list_objects_v2().bucket(&bucket).send().await, "list");
    let uploads = client.list_multipart_uploads().bucket(&bucket);
    assert_denied(uploads.send().await, "list uploads");
    let (id, _) = begin(&client, &bucket, "more").await;
    let parts = client.list_parts().bucket(&bucket).key("more").upload_id(id);
    assert_denied(parts.send().await, "list parts");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_refuses_to_delete_takes_backups_without_complaint() {
    let bucket = fresh("append-only");
    Server::SeaweedFs.client().create_bucket().bucket(&bucket).send().await.unwrap();
    let (access_key, secret_key) = Identity::NoDelete.keys();
    let server = S3 { access_key, secret_key, ..s3("SEAWEEDFS") };
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_delete_a_month_passes_without_a_complaint() {
    let (bucket, owner) = (fresh("month"), Server::SeaweedFs.client());
    let second = fresh("month");
    for bucket in [&bucket, &second] {
        owner.create_bucket().bucket(bucket).send().await.unwrap();
    }
    let proxy = S3Proxy::before(&Server::SeaweedFs.endpoint()).await;
    let (access_key, secret_key) = Identity::NoDelete.keys();
    let server = S3 { access_key, secret_key, endpoint: proxy.endpoint.clone(), ..s3("SEAWEEDFS") };
    let site = Site::new(&format!(
        "[sources.dump]\ntype = \"command\"\ncommand = [\"sh\", \"@/dump.sh\"]\n\
         {}prune = false\n{}prune = false\n\
         [strategies.daily]\nsources = [\"dump\"]\nstorages = [\"offsite\"]\n\
         retention = {{ keep_last = 3 }}\n",
        s3_storage("offsite", &server, &bucket),
        s3_storage("second", &server, &second)
    ));
    let script = "here=\"${0%/*}\"; date +%N\n\
        if [ -e \"$here/wait\" ]; then touch \"$here/waits\"; sleep 600; fi";
    std::fs::write(site.path("dump.sh"), script).unwrap();
    let quiet = |args: &[&str]| {
        let ran = site.backup(args).expect(0);
        assert!(!ran.err().contains("WARN") && !ran.err().contains("error"), "{args:?}: {ran}");
        ran
    };
    let mut taken = 0;
    for day in 0..30 {
        if day == 5 {
            std::fs::write(site.path("wait"), "").unwrap();
            let args = ["run", "--strategy", "daily"];
            let running = site.backup(args).spawn();
            until("it dumps", || site.path("waits").exists());
            running.signal(Signal::KILL);
            assert_eq!(running.wait().code(), None);
            std::fs::remove_file(site.path("wait")).unwrap();
        }
        let report = quiet(&["run", "--strategy", "daily", "--json"]).json();
        taken += 1;
        let id = report["id"].as_str().unwrap();
        if day == 7 {
            // Cut off, and what it left is damaged: it can be replaced though not deleted.
            proxy.inject_at(Op::Put, "manifest.json", Fault::Say(400, "InvalidRequest"), 1);
            let copy = ["copy", "--from", "offsite", "--to", "second", "--snapshot", id];
            site.backup(copy).expect(1);
            proxy.heal();
            put(&owner, &second, &format!("app/daily/{id}/dump.out.zst")).await;
        }
        if day % 7 == 0 || day == 29 {
            quiet(&["verify", "--read-data"]);
            quiet(&["drill", "--strategy", "daily", "--json"]);
            quiet(&["copy", "--from", "offsite", "--to", "second"]);
            quiet(&["hold", id, "--reason", "month"]);
            quiet(&["status"]);
        }
        if day % 14 == 0 {
            quiet(&["release", id]);
            let check = quiet(&["check", "--json"]).json();
            for storage in check["instances"][0]["storages"].as_array().unwrap() {
                let findings = storage["findings"].as_array().unwrap();
                let said = findings.iter().filter(|one| one["subject"] == "delete").count();
                assert_eq!(said, 1, "{storage:#}");
            }
        }
    }
    quiet(&["verify", "--read-data", "--storage", "second"]);
    for bucket in [&bucket, &second] {
        let keys = keys(&owner, bucket).await;
        let named = |end: &str| keys.iter().filter(|key| key.ends_with(end)).count();
        assert_eq!((named("/manifest.json"), named("/probe")), (taken, 1), "{keys:?}");
    }
}
