//! What the tests of a worker stand on: the real binary, and a client that speaks the protocol raw.

#![allow(dead_code, unreachable_pub, missing_docs, reason = "tests use parts of it")]

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};
use widemap_common::artifact::JobFiles;
use widemap_common::framing::LINES;
use widemap_common::ids::{AttemptId, CoordinatorId, Epoch, ItemRange, JobId};
use widemap_common::limits::{BATCH_BYTES_MAX, BATCH_ENTRIES_MAX};
use widemap_common::spec::{Directory, Function, JobSpec};
use widemap_common::template::{Syntax, Template};
use widemap_proto::VERSION;
use widemap_proto::session::{
    Assign, CoordinatorHello, Credit, Done, HeldAttempt, Order, OutputGrant, Report, WorkerHello,
};
use widemap_proto::wire::worker_client::WorkerClient;
use widemap_proto::wire::{FromWorker, ToWorker};

/// How long anything in a test may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Timers that let a test of them be short.
pub const TIMERS: &str = "--timers=heartbeat_ms=20,kill_grace_ms=200,pipe_grace_ms=100";

pub const JOB: JobId = JobId(1);

/// The binary, killed when dropped.
pub struct WorkerProcess {
    child: Child,
    pub port: u16,
    /// A handle to each connection, to cut it by.
    connections: Arc<Mutex<Vec<std::net::TcpStream>>>,
}

impl WorkerProcess {
    pub fn start(args: &[&str]) -> Self {
        Self::start_in(Command::new(env!("CARGO_BIN_EXE_widemap-worker")).args(args))
    }

    pub fn start_in(command: &mut Command) -> Self {
        Self::start_telling(command.stderr(Stdio::null()))
    }

    /// The same, with standard error as the command has it.
    pub fn start_telling(command: &mut Command) -> Self {
        let mut child =
            command.arg(TIMERS).stdout(Stdio::piped()).spawn().expect("the worker starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("it is piped");
        BufReader::new(stdout).read_line(&mut line).expect("the worker says where it listens");
        let port = line.trim().rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        let port = port.unwrap_or_else(|| panic!("not an address: {line:?}"));
        Self { port, child, connections: Arc::default() }
    }

    /// The process that starts all others.
    pub fn spawner(&self) -> u32 {
        match children(self.pid())[..] {
            [spawner] => spawner,
            ref others => panic!("one spawner and no other child: {others:?}"),
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("the worker is there");
    }

    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().expect("the worker is ours")
    }

    pub async fn link(&self) -> Link {
        Link::open(self.channel().await, hello(1, 1)).await.expect("the worker greets")
    }

    pub async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{}", self.port)).unwrap();
        let sized = endpoint
            .tcp_nodelay(true)
            .initial_connection_window_size(8 << 20)
            .initial_stream_window_size(8 << 20);
        let (port, connections) = (self.port, Arc::clone(&self.connections));
        let connector = tower::service_fn(move |_: tonic::transport::Uri| {
            let stream = std::net::TcpStream::connect(("127.0.0.1", port)).and_then(|stream| {
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                connections.lock().unwrap().push(stream.try_clone()?);
                tokio::net::TcpStream::from_std(stream)
            });
            std::future::ready(stream.map(hyper_util::rt::TokioIo::new))
        });
        sized.connect_with_connector(connector).await.expect("the worker listens")
    }

    /// Cuts every connection, as a network does: no stream is ended in good order.
    pub fn cut(&self) {
        for connection in self.connections.lock().unwrap().drain(..) {
            // It may be closed already.
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn hello(coordinator: u64, epoch: u64) -> CoordinatorHello {
    CoordinatorHello {
        version: VERSION,
        build: "test".to_owned(),
        coordinator: CoordinatorId(coordinator),
        epoch: Epoch(epoch),
        linger_ms: 20_000,
    }
}

/// One stream to a worker.
pub struct Link {
    orders: mpsc::Sender<ToWorker>,
    inbound: Streaming<FromWorker>,
    seen: VecDeque<Report>,
    pub hello: Box<WorkerHello>,
    pub held: Vec<HeldAttempt>,
    pub credit: Credit,
}

impl Link {
    pub async fn open(channel: Channel, hello: CoordinatorHello) -> Result<Self, Status> {
        let (orders, queue) = mpsc::channel(8);
        let _ = orders.send(vec![Order::Hello(hello)].into()).await;
        let stream = WorkerClient::new(channel).session(ReceiverStream::new(queue)).await?;
        let mut inbound = stream.into_inner();
        let first = inbound.message().await?.expect("a greeting");
        let mut seen = VecDeque::from(Vec::<Report>::try_from(first).expect("reports"));
        let Some(Report::Hello(hello)) = seen.pop_front() else { panic!("no hello") };
        let Some(Report::Held(held)) = seen.pop_front() else { panic!("no held") };
        let Some(Report::Credit(credit)) = seen.pop_front() else { panic!("no credit") };
        let Some(Report::InputGrant(_)) = seen.pop_front() else { panic!("no input grant") };
        Ok(Self { orders, inbound, seen, hello, held, credit })
    }

    /// Sends orders, in as many messages as their payload needs.
    pub async fn send(&self, orders: Vec<Order>) {
        let mut message = Vec::new();
        let mut bytes = 0;
        for order in orders {
            bytes += match &order {
                Order::Assign(assign) => assign.input.len(),
                Order::Input(part) => part.data.len(),
                _ => 0,
            };
            message.push(order);
            if bytes >= BATCH_BYTES_MAX || message.len() >= BATCH_ENTRIES_MAX {
                bytes = 0;
                self.send_message(std::mem::take(&mut message)).await;
            }
        }
        if !message.is_empty() {
            self.send_message(message).await;
        }
    }

    async fn send_message(&self, orders: Vec<Order>) {
        self.orders.send(orders.into()).await.expect("the stream is open");
    }

    /// The reports of one message.
    pub async fn batch(&mut self) -> Vec<Report> {
        if self.seen.is_empty() {
            self.receive().await.expect("the stream goes on");
        }
        self.seen.drain(..).collect()
    }

    /// The next report that is no heartbeat.
    pub async fn next(&mut self) -> Result<Report, Status> {
        tokio::time::timeout(PATIENCE, async {
            loop {
                match self.seen.pop_front() {
                    Some(Report::Heartbeat(_)) => {}
                    Some(report) => return Ok(report),
                    None => self.receive().await?,
                }
            }
        })
        .await
        .expect("the worker reports in time")
    }

    async fn receive(&mut self) -> Result<(), Status> {
        let message = self.inbound.message().await?;
        let message = message.ok_or_else(|| Status::cancelled("the stream has ended"))?;
        self.seen.extend(Vec::<Report>::try_from(message).expect("reports"));
        Ok(())
    }

    /// The first report that `find` knows; those before it are dropped.
    pub async fn until<T>(&mut self, mut find: impl FnMut(Report) -> Option<T>) -> T {
        tokio::time::timeout(PATIENCE, async {
            loop {
                while let Some(report) = self.seen.pop_front() {
                    if let Some(found) = find(report) {
                        return found;
                    }
                }
                self.receive().await.expect("the stream goes on");
            }
        })
        .await
        .expect("the worker reports in time")
    }

    /// Opens the job and grants all output.
    pub async fn open_job(&mut self, spec: JobSpec) {
        let grant = OutputGrant { total: u64::MAX, urgent: None };
        self.send(vec![Order::OpenJob(JOB, Box::new(spec)), Order::OutputGrant(grant)]).await;
        match self.next().await.expect("an answer") {
            Report::JobReady(JOB) => {}
            other => panic!("the job is not ready: {other:?}"),
        }
    }

    /// Runs one attempt and returns its whole output and its end.
    pub async fn run(&mut self, attempt: u64, input: &[u8]) -> (Vec<u8>, Box<Done>) {
        self.send(vec![assign(attempt, 0, input)]).await;
        self.done(attempt).await
    }

    pub async fn done(&mut self, attempt: u64) -> (Vec<u8>, Box<Done>) {
        let mut output = Vec::new();
        let done = self
            .until(|report| match report {
                Report::Output(part) if part.attempt == AttemptId(attempt) => {
                    assert_eq!(part.offset, output.len() as u64);
                    output.extend_from_slice(&part.data);
                    None
                }
                Report::Done(done) if done.attempt == AttemptId(attempt) => Some(done),
                _ => None,
            })
            .await;
        output.extend_from_slice(&done.output);
        assert_eq!(done.output_bytes, output.len() as u64);
        (output, done)
    }

    /// Waits until the attempt runs.
    pub async fn running(&mut self, attempt: u64) {
        let named = |report| match report {
            Report::Heartbeat(running) => {
                running.iter().any(|progress| progress.attempt == AttemptId(attempt)).then_some(())
            }
            _ => None,
        };
        self.until(named).await;
    }
}

/// An attempt at the items of `input`, which are lines.
pub fn assign(attempt: u64, first: u64, input: &[u8]) -> Order {
    assign_of(JOB, attempt, first, input)
}

pub fn assign_of(job: JobId, attempt: u64, first: u64, input: &[u8]) -> Order {
    let items = u32::try_from(LINES.count(input)).unwrap();
    Order::Assign(Assign {
        attempt: AttemptId(attempt),
        job,
        range: ItemRange::new(first, items),
        input_offset: 0,
        input_bytes: input.len() as u64,
        input: Bytes::copy_from_slice(input),
    })
}

pub fn exec(argv: &[&str]) -> JobSpec {
    let argv: Vec<_> = argv.iter().map(|arg| arg.as_bytes().to_vec()).collect();
    spec(Function::Exec { argv: Template::command(&argv, Syntax::default()) })
}

/// A shell script run once for each item, which is `$1`.
pub fn shell(script: &str) -> JobSpec {
    exec(&["sh", "-c", script, "sh", "{}"])
}

pub fn pipe(argv: &[&str]) -> JobSpec {
    let argv = argv.iter().map(|arg| arg.as_bytes().to_vec()).collect();
    spec(Function::Pipe { argv })
}

pub fn builtin(name: &str) -> JobSpec {
    spec(Function::Builtin { name: name.to_owned() })
}

fn spec(function: Function) -> JobSpec {
    JobSpec {
        function,
        framing: LINES,
        directory: Directory::Private,
        environment: Vec::new(),
        files: JobFiles::default(),
        timeout: None,
        max_output: 1 << 30,
        limits: widemap_common::spec::Limits::default(),
        slots_per_item: std::num::NonZeroU32::MIN,
        per_item: false,
        ok_exit: Vec::new(),
    }
}

/// What runs below the worker's spawner, zombies too.
pub fn children_of_spawner(worker: u32) -> Vec<u32> {
    children(worker).into_iter().flat_map(children).collect()
}

pub fn children(parent: u32) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").expect("there is a /proc");
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent_field =
            stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1));
        parent_field == Some(parent.to_string().as_str())
    })
    .collect()
}

/// Whether the test may do what only root may. Where not, it says so and is skipped, except in CI,
/// where `WIDEMAP_TEST_NO_SKIP` turns that into a failure.
pub fn needs_root(test: &str) -> bool {
    rustix::process::geteuid().is_root() || unmet(test, "root")
}

/// Whether a program that a test needs is there; where not, as with [`needs_root`].
pub fn needs(test: &str, program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|directory| directory.join(program).is_file());
    found || unmet(test, program)
}

pub fn unmet(test: &str, what: &str) -> bool {
    let must = std::env::var_os("WIDEMAP_TEST_NO_SKIP").is_some();
    assert!(!must, "{test} needs {what}, and must not be skipped here");
    println!("skipped: {test} needs {what}");
    false
}

/// What a command that ends by itself says on standard error, and its status.
pub fn fails(command: &mut Command) -> (String, Option<i32>) {
    let output = command.stdin(Stdio::null()).output().expect("it starts");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "it listens nowhere");
    (String::from_utf8_lossy(&output.stderr).into_owned(), output.status.code())
}

pub fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("the output is text")
}

/// Waits for a condition of the outside world.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether a process of that id is there and no zombie.
pub fn lives(pid: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => !stat.contains(") Z "),
        Err(_) => false,
    }
}
