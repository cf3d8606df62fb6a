//! The session between a coordinator and a worker: orders and reports.

use bytes::Bytes;
use widemap_common::failure::{FailureKind, Fault};
use widemap_common::ids::{AttemptId, CoordinatorId, Epoch, Incarnation, ItemRange, JobId};
use widemap_common::limits::{FILTER_CHUNK_ITEMS_MAX, NAME_BYTES_MAX, PART_BYTES_MAX};
use widemap_common::spec::Runtime;

use super::artifact::{digest_to_wire, digests_from_wire};
use super::spec::{job_from_wire, job_to_wire};
use super::{Result, WireError, shown};
use crate::session::{
    Assign, CoordinatorHello, Credit, Done, HeldAttempt, HeldState, ItemStderr, LeftOut, Order,
    OutputGrant, Part, Progress, Refusal, RefusalCause, Report, Version, WorkerHello,
};
use crate::wire;
use crate::wire::order::Kind as OrderKind;
use crate::wire::report::Kind as ReportKind;

fn checked(attempt: AttemptId, data: &Bytes, sent: u32) -> Result<()> {
    if data.len() > PART_BYTES_MAX {
        return Err(WireError::PartTooLong { attempt, bytes: data.len() });
    }
    let got = crc32c::crc32c(data);
    if got == sent { Ok(()) } else { Err(WireError::Checksum { attempt, got, sent }) }
}

impl From<Vec<Order>> for wire::ToWorker {
    fn from(orders: Vec<Order>) -> Self {
        let wrap = |order| wire::Order { kind: Some(order_to_wire(order)) };
        Self { orders: orders.into_iter().map(wrap).collect() }
    }
}

impl TryFrom<wire::ToWorker> for Vec<Order> {
    type Error = WireError;
    fn try_from(batch: wire::ToWorker) -> Result<Self> {
        let order = |o: wire::Order| order_from_wire(o.kind.ok_or(WireError::UnknownKind)?);
        batch.orders.into_iter().map(order).collect()
    }
}

impl From<Vec<Report>> for wire::FromWorker {
    fn from(reports: Vec<Report>) -> Self {
        let wrap = |report| wire::Report { kind: Some(report_to_wire(report)) };
        Self { reports: reports.into_iter().map(wrap).collect() }
    }
}

impl TryFrom<wire::FromWorker> for Vec<Report> {
    type Error = WireError;
    fn try_from(batch: wire::FromWorker) -> Result<Self> {
        let report = |r: wire::Report| report_from_wire(r.kind.ok_or(WireError::UnknownKind)?);
        batch.reports.into_iter().map(report).collect()
    }
}

fn order_to_wire(order: Order) -> OrderKind {
    match order {
        Order::Hello(hello) => OrderKind::Hello(wire::CoordinatorHello {
            version: Some(version_to_wire(hello.version)),
            build: hello.build,
            coordinator: hello.coordinator.0,
            epoch: hello.epoch.0,
            linger_ms: hello.linger_ms,
            features: Vec::new(),
        }),
        Order::Demand(attempts) => OrderKind::Demand(wire::Demand { attempts }),
        Order::OpenJob(job, spec) => OrderKind::OpenJob(job_to_wire(job, *spec)),
        Order::CloseJob(job) => OrderKind::CloseJob(wire::CloseJob { job: job.0 }),
        Order::Assign(assign) => OrderKind::Assign(wire::Assign {
            attempt: assign.attempt.0,
            job: assign.job.0,
            first_item: assign.range.first,
            input_offset: assign.input_offset,
            items: assign.range.items,
            input_bytes: assign.input_bytes,
            crc32c: crc32c::crc32c(&assign.input),
            input: assign.input,
        }),
        Order::Input(part) => OrderKind::Input(wire::InputPart {
            attempt: part.attempt.0,
            offset: part.offset,
            crc32c: crc32c::crc32c(&part.data),
            data: part.data,
        }),
        Order::Revoke(attempt) => OrderKind::Revoke(wire::Revoke { attempt: attempt.0 }),
        Order::Cancel(attempt) => OrderKind::Cancel(wire::Cancel { attempt: attempt.0 }),
        Order::Accepted(attempts) => OrderKind::Accepted(wire::Accepted {
            attempts: attempts.into_iter().map(|attempt| attempt.0).collect(),
        }),
        Order::OutputGrant(grant) => OrderKind::OutputGrant(wire::OutputGrant {
            total: grant.total,
            urgent_attempt: grant.urgent.map(|(attempt, _)| attempt.0),
            urgent_bytes: grant.urgent.map_or(0, |(_, bytes)| bytes),
        }),
        Order::Ping(stamp) => OrderKind::Ping(wire::Ping { stamp }),
        Order::Goodbye => OrderKind::Goodbye(wire::Goodbye {}),
        Order::LeftOut(left_out) => OrderKind::LeftOut(left_out_to_wire(left_out)),
    }
}

fn left_out_to_wire(left_out: LeftOut) -> wire::LeftOut {
    wire::LeftOut { for_ms: left_out.for_ms, why: left_out.why }
}

fn left_out_from_wire(left_out: wire::LeftOut) -> LeftOut {
    LeftOut { for_ms: left_out.for_ms, why: shown(left_out.why, NAME_BYTES_MAX) }
}

fn order_from_wire(kind: OrderKind) -> Result<Order> {
    Ok(match kind {
        OrderKind::Hello(hello) => Order::Hello(CoordinatorHello {
            version: version_from_wire(hello.version)?,
            build: shown(hello.build, NAME_BYTES_MAX),
            coordinator: CoordinatorId(hello.coordinator),
            epoch: Epoch(hello.epoch),
            linger_ms: hello.linger_ms,
        }),
        OrderKind::Demand(demand) => Order::Demand(demand.attempts),
        OrderKind::OpenJob(open) => {
            let job = JobId(open.job);
            Order::OpenJob(job, Box::new(job_from_wire(open)?))
        }
        OrderKind::CloseJob(close) => Order::CloseJob(JobId(close.job)),
        OrderKind::Assign(assign) => {
            let attempt = AttemptId(assign.attempt);
            checked(attempt, &assign.input, assign.crc32c)?;
            if assign.items == 0 || assign.first_item.checked_add(assign.items.into()).is_none() {
                return Err(WireError::Field("Assign.items"));
            }
            if (assign.input.len() as u64) > assign.input_bytes {
                return Err(WireError::Field("Assign.input_bytes"));
            }
            Order::Assign(Assign {
                attempt,
                job: JobId(assign.job),
                range: ItemRange::new(assign.first_item, assign.items),
                input_offset: assign.input_offset,
                input_bytes: assign.input_bytes,
                input: assign.input,
            })
        }
        OrderKind::Input(part) => {
            let attempt = AttemptId(part.attempt);
            checked(attempt, &part.data, part.crc32c)?;
            Order::Input(Part { attempt, offset: part.offset, data: part.data })
        }
        OrderKind::Revoke(revoke) => Order::Revoke(AttemptId(revoke.attempt)),
        OrderKind::Cancel(cancel) => Order::Cancel(AttemptId(cancel.attempt)),
        OrderKind::Accepted(accepted) => {
            Order::Accepted(accepted.attempts.into_iter().map(AttemptId).collect())
        }
        OrderKind::OutputGrant(grant) => Order::OutputGrant(OutputGrant {
            total: grant.total,
            urgent: grant.urgent_attempt.map(|id| (AttemptId(id), grant.urgent_bytes)),
        }),
        OrderKind::Ping(ping) => Order::Ping(ping.stamp),
        OrderKind::Goodbye(wire::Goodbye {}) => Order::Goodbye,
        OrderKind::LeftOut(left_out) => Order::LeftOut(left_out_from_wire(left_out)),
    })
}

fn report_to_wire(report: Report) -> ReportKind {
    match report {
        Report::Hello(hello) => ReportKind::Hello(wire::WorkerHello {
            version: Some(version_to_wire(hello.version)),
            build: hello.build,
            name: hello.name,
            incarnation: hello.incarnation.0,
            slots: hello.slots,
            runtimes: hello.runtimes.iter().map(|runtime| runtime.name().to_owned()).collect(),
            labels: hello.labels.into_iter().collect(),
            features: Vec::new(),
            functions: hello.functions,
            left_out: hello.left_out.map(left_out_to_wire),
            clock_ms: hello.clock_ms,
        }),
        Report::Held(attempts) => ReportKind::Held(wire::Held {
            attempts: attempts.into_iter().map(held_to_wire).collect(),
        }),
        Report::Credit(credit) => {
            ReportKind::Credit(wire::Credit { slots: credit.slots, queue: credit.queue })
        }
        Report::JobNeeds(job, digests) => ReportKind::Needs(wire::JobNeeds {
            job: job.0,
            digests: digests.into_iter().map(digest_to_wire).collect(),
        }),
        Report::JobReady(job) => ReportKind::JobReady(wire::JobReady { job: job.0 }),
        Report::JobRefused(job, refusal) => ReportKind::JobRefused(wire::JobRefused {
            job: job.0,
            cause: cause_to_wire(refusal.cause).into(),
            message: refusal.message,
        }),
        Report::Revoked(attempt) => ReportKind::Revoked(wire::Revoked { attempt: attempt.0 }),
        Report::TooLate(attempt) => ReportKind::TooLate(wire::TooLate { attempt: attempt.0 }),
        Report::Output(part) => ReportKind::Output(wire::OutputPart {
            attempt: part.attempt.0,
            offset: part.offset,
            crc32c: crc32c::crc32c(&part.data),
            data: part.data,
        }),
        Report::Done(done) => ReportKind::Done(done_to_wire(*done)),
        Report::Heartbeat(running) => ReportKind::Heartbeat(wire::Heartbeat {
            running: running.into_iter().map(progress_to_wire).collect(),
        }),
        Report::Log(job, text) => {
            ReportKind::Log(wire::LogLine { job: job.map_or(0, |job| job.0), text })
        }
        Report::Draining(deadline_ms) => ReportKind::Draining(wire::Draining { deadline_ms }),
        Report::Pong(stamp) => ReportKind::Pong(wire::Pong { stamp }),
        Report::InputGrant(total) => ReportKind::InputGrant(wire::InputGrant { total }),
        Report::Paused(why) => ReportKind::Paused(wire::Paused { why: why.unwrap_or_default() }),
        Report::Cancelled(attempt) => ReportKind::Cancelled(wire::Cancelled { attempt: attempt.0 }),
    }
}

fn report_from_wire(kind: ReportKind) -> Result<Report> {
    Ok(match kind {
        ReportKind::Hello(hello) => Report::Hello(Box::new(WorkerHello {
            version: version_from_wire(hello.version)?,
            build: shown(hello.build, NAME_BYTES_MAX),
            name: shown(hello.name, NAME_BYTES_MAX),
            incarnation: Incarnation(hello.incarnation),
            slots: hello.slots,
            runtimes: hello.runtimes.iter().filter_map(|name| Runtime::from_name(name)).collect(),
            labels: hello
                .labels
                .into_iter()
                .map(|(key, value)| (shown(key, NAME_BYTES_MAX), shown(value, NAME_BYTES_MAX)))
                .collect(),
            functions: hello.functions,
            left_out: hello.left_out.map(left_out_from_wire),
            clock_ms: hello.clock_ms,
        })),
        ReportKind::Held(held) => {
            Report::Held(held.attempts.iter().map(held_from_wire).collect::<Result<_>>()?)
        }
        ReportKind::Credit(credit) => {
            Report::Credit(Credit { slots: credit.slots, queue: credit.queue })
        }
        ReportKind::Needs(needs) => {
            Report::JobNeeds(JobId(needs.job), digests_from_wire(&needs.digests)?)
        }
        ReportKind::JobReady(ready) => Report::JobReady(JobId(ready.job)),
        ReportKind::JobRefused(refused) => {
            let cause = cause_from_wire(refused.cause())?;
            let message = shown(refused.message, widemap_common::limits::MESSAGE_BYTES_MAX);
            Report::JobRefused(JobId(refused.job), Refusal { cause, message })
        }
        ReportKind::Paused(paused) => {
            let why = shown(paused.why, widemap_common::limits::MESSAGE_BYTES_MAX);
            Report::Paused((!why.is_empty()).then_some(why))
        }
        ReportKind::Revoked(revoked) => Report::Revoked(AttemptId(revoked.attempt)),
        ReportKind::TooLate(late) => Report::TooLate(AttemptId(late.attempt)),
        ReportKind::Output(part) => {
            let attempt = AttemptId(part.attempt);
            checked(attempt, &part.data, part.crc32c)?;
            Report::Output(Part { attempt, offset: part.offset, data: part.data })
        }
        ReportKind::Done(done) => Report::Done(Box::new(done_from_wire(done)?)),
        ReportKind::Heartbeat(beat) => {
            Report::Heartbeat(beat.running.iter().map(progress_from_wire).collect())
        }
        ReportKind::Log(line) => Report::Log(
            (line.job != 0).then_some(JobId(line.job)),
            shown(line.text, widemap_common::limits::MESSAGE_BYTES_MAX),
        ),
        ReportKind::Draining(draining) => Report::Draining(draining.deadline_ms),
        ReportKind::Pong(pong) => Report::Pong(pong.stamp),
        ReportKind::InputGrant(grant) => Report::InputGrant(grant.total),
        ReportKind::Cancelled(cancelled) => Report::Cancelled(AttemptId(cancelled.attempt)),
    })
}

fn version_to_wire(version: Version) -> wire::Version {
    wire::Version { major: version.major, minor: version.minor }
}

fn version_from_wire(version: Option<wire::Version>) -> Result<Version> {
    let version = version.ok_or(WireError::Field("version"))?;
    Ok(Version { major: version.major, minor: version.minor })
}

fn held_to_wire(held: HeldAttempt) -> wire::HeldAttempt {
    use wire::held_attempt::State;
    let state = match held.state {
        HeldState::Queued => State::Queued,
        HeldState::Running => State::Running,
        HeldState::Finished => State::Finished,
    };
    wire::HeldAttempt {
        attempt: held.attempt.0,
        state: state.into(),
        input_bytes: held.input_bytes,
        job: held.job.0,
        first_item: held.range.first,
        items: held.range.items,
        input_offset: held.input_offset,
        input_length: held.input_length,
    }
}

fn held_from_wire(held: &wire::HeldAttempt) -> Result<HeldAttempt> {
    use wire::held_attempt::State;
    let state = match held.state() {
        State::Queued => HeldState::Queued,
        State::Running => HeldState::Running,
        State::Finished => HeldState::Finished,
        State::Unspecified => return Err(WireError::Field("HeldAttempt.state")),
    };
    if held.items == 0 || held.first_item.checked_add(held.items.into()).is_none() {
        return Err(WireError::Field("HeldAttempt.items"));
    }
    Ok(HeldAttempt {
        attempt: AttemptId(held.attempt),
        job: JobId(held.job),
        range: ItemRange::new(held.first_item, held.items),
        input_offset: held.input_offset,
        input_length: held.input_length,
        state,
        input_bytes: held.input_bytes,
    })
}

fn cause_to_wire(cause: RefusalCause) -> wire::job_refused::Cause {
    use wire::job_refused::Cause;
    match cause {
        RefusalCause::NotFound => Cause::NotFound,
        RefusalCause::NotAllowed => Cause::NotAllowed,
        RefusalCause::Directory => Cause::Directory,
        RefusalCause::Limit => Cause::Limit,
    }
}

fn cause_from_wire(cause: wire::job_refused::Cause) -> Result<RefusalCause> {
    use wire::job_refused::Cause;
    Ok(match cause {
        Cause::NotFound => RefusalCause::NotFound,
        Cause::NotAllowed => RefusalCause::NotAllowed,
        Cause::Directory => RefusalCause::Directory,
        Cause::Limit => RefusalCause::Limit,
        Cause::Unspecified => return Err(WireError::Field("JobRefused.cause")),
    })
}

fn done_to_wire(done: Done) -> wire::Done {
    wire::Done {
        attempt: done.attempt.0,
        crc32c: crc32c::crc32c(&done.output),
        output: done.output,
        output_bytes: done.output_bytes,
        busy_us: done.busy_us,
        item_lengths: done.item_lengths,
        item_micros: done.item_micros,
        item_exits: done.item_exits,
        faults: done.faults.into_iter().map(fault_to_wire).collect(),
        stderr: done
            .stderr
            .into_iter()
            .map(|s| wire::ItemStderr { index: s.index, data: s.data, cut: s.cut })
            .collect(),
    }
}

fn done_from_wire(done: wire::Done) -> Result<Done> {
    let attempt = AttemptId(done.attempt);
    checked(attempt, &done.output, done.crc32c)?;
    Ok(Done {
        attempt,
        output: done.output,
        output_bytes: done.output_bytes,
        busy_us: done.busy_us,
        item_lengths: done.item_lengths,
        item_micros: done.item_micros,
        item_exits: done.item_exits,
        faults: done.faults.into_iter().map(fault_from_wire).collect::<Result<_>>()?,
        stderr: done
            .stderr
            .into_iter()
            .map(|s| ItemStderr { index: s.index, data: s.data, cut: s.cut })
            .collect(),
    })
}

fn fault_to_wire(fault: Fault) -> wire::Fault {
    use wire::fault::Kind;
    wire::Fault {
        index: fault.index,
        kind: match fault.kind {
            FailureKind::Error => Kind::Error,
            FailureKind::Timeout => Kind::Timeout,
            FailureKind::Crash => Kind::Crash,
            FailureKind::Lost => Kind::Lost,
            FailureKind::Cancelled => Kind::Cancelled,
        }
        .into(),
        message: fault.message,
        exit: fault.exit,
        signal: fault.signal,
        output_offset: fault.output_offset,
        output_bytes: fault.output_bytes,
        permanent: !fault.retryable,
        micros: fault.micros,
        unfit: fault.unfit,
    }
}

fn fault_from_wire(fault: wire::Fault) -> Result<Fault> {
    use wire::fault::Kind;
    if fault.index >= FILTER_CHUNK_ITEMS_MAX {
        return Err(WireError::Field("Fault.index"));
    }
    Ok(Fault {
        index: fault.index,
        kind: match fault.kind() {
            Kind::Error => FailureKind::Error,
            Kind::Timeout => FailureKind::Timeout,
            Kind::Crash => FailureKind::Crash,
            Kind::Lost => FailureKind::Lost,
            Kind::Cancelled => FailureKind::Cancelled,
            Kind::Unspecified => return Err(WireError::Field("Fault.kind")),
        },
        message: fault.message,
        exit: fault.exit,
        signal: fault.signal,
        output_offset: fault.output_offset,
        output_bytes: fault.output_bytes,
        retryable: !fault.permanent,
        micros: fault.micros,
        unfit: fault.unfit,
    })
}

fn progress_to_wire(progress: Progress) -> wire::Progress {
    wire::Progress {
        attempt: progress.attempt.0,
        item: progress.item,
        running_us: progress.running_us,
        stalled: progress.stalled,
    }
}

fn progress_from_wire(progress: &wire::Progress) -> Progress {
    Progress {
        attempt: AttemptId(progress.attempt),
        item: progress.item,
        running_us: progress.running_us,
        stalled: progress.stalled,
    }
}
