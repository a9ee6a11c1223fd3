//! A server in a container with little memory.

use std::{fs, io, path::PathBuf, time::Duration};

use bytes::Bytes;
use sessiond::proto::HasSessionRequest;
use tonic::Code;

use crate::{
    fake::soon,
    hostile::Target,
    program::Program,
    raw::{Raw, SERVICE, grpc},
    server::Sessions,
};

/// A control group, removed when this is dropped.
struct Container(PathBuf);

impl Container {
    /// Makes a control group with this memory limit. Returns `None` if this user may not make control groups.
    fn with_memory(bytes: u64) -> Option<Self> {
        // Version 1, then version 2.
        let kinds = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
        kinds.iter().find_map(|(folder, file)| {
            let container = Self(PathBuf::from(folder).join(format!("sessiond-{:x}", fastrand::u64(..))));
            let limit = |container: &Self| -> io::Result<()> {
                fs::create_dir(&container.0)?;
                fs::OpenOptions::new().write(true).open(container.0.join(file))?;
                fs::write(container.0.join(file), bytes.to_string())
            };
            limit(&container).is_ok().then_some(container)
        })
    }

    async fn start(&self, args: &[&str]) -> Program {
        let enter = format!("echo $$ >{}/cgroup.procs && exec \"$0\" \"$@\"", self.0.display());
        Program::start_within(&["sh", "-c", &enter], args).await
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // An error here cannot be reported.
        let _ = fs::remove_dir(&self.0);
    }
}

/// Retries a call that was refused: while the limit is reached, one whose request arrives in two parts is refused, too.
async fn has_retried(client: &mut Sessions) -> bool {
    let request = HasSessionRequest { session_id: Some(0), auth_key_id: 0 };
    soon(async {
        loop {
            match client.has_session(request).await {
                Ok(found) => return found.into_inner().exists,
                Err(status) => assert_eq!(status.code(), Code::ResourceExhausted, "{status}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

#[tokio::test]
async fn the_default_limits_fit_the_memory_of_a_small_container() {
    const MEMORY: u64 = 256 << 20;
    let Some(container) = Container::with_memory(MEMORY) else {
        eprintln!("SKIPPED: this user may not make control groups");
        return;
    };
    let mut target = Target::of(container.start(&["--workers", "2"]).await).await;
    target.program.logs(&format!("\"memory\":{MEMORY},\"retain_bytes\":{},", MEMORY / 4)).await;

    // Large and small requests that never end, with more bytes in total than the container's memory.
    let large = Bytes::from([&4_000_000_u32.to_be_bytes()[..], &[0; 3_900_000]].concat());
    let small = Bytes::from([&4_000_000_u32.to_be_bytes()[..], &[0; 3_000]].concat());
    let (mut raws, mut held) = (Vec::new(), Vec::new());
    for _ in 0..12 {
        let mut raw = Raw::connect(target.program.addr).await;
        for body in [&large; 10].into_iter().chain([&small; 1000]) {
            let (response, mut stream) = raw.open(grpc(&format!("{SERVICE}/BatchHasSessions"))).await;
            stream.send_data(Bytes::from_static(&[0]), false).unwrap();
            stream.send_data(body.clone(), false).unwrap();
            held.push((response, stream));
        }
        assert!(has_retried(&mut target.program.sessions()).await, "other clients are served");
        let resident = target.program.metric("process_resident_memory_bytes").await;
        assert!(resident < MEMORY * 3 / 4, "{resident} bytes");
        raws.push(raw);
    }
    assert!(target.program.metric("sessiond_refused_total{reason=\"TOO_MANY_PENDING_BYTES\"}").await > 0);
    target.resident = target.program.metric("process_resident_memory_bytes").await;
    drop((held, raws));
    target.assert_recovered().await;
}
