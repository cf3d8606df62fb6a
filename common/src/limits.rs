//! Every bound of Widemap, in one place: what is not here is not bounded by design.

/// A part of payload on the wire, either way. Measured best over loopback, and far below gRPC's
/// limit of 4 MiB for a message.
pub const PART_BYTES_MAX: usize = 1024 * 1024;

/// Small orders and reports share a message up to this many bytes of payload.
pub const BATCH_BYTES_MAX: usize = 256 * 1024;

/// Orders or reports in one message.
pub const BATCH_ENTRIES_MAX: usize = 4_096;

/// Messages that wait between a session and its gRPC stream, in each direction.
pub const STREAM_QUEUE: usize = 2;

/// Events that wait for the driver; a session that finds it full waits, its peer is bounded by
/// credit.
pub const DRIVER_QUEUE: usize = 256;

/// The largest chunk that the scheduler asks for, in bytes of input; one longer item goes alone.
pub const CHUNK_BYTES_MAX: u64 = 1024 * 1024;

/// The same for filters: one that holds its lines back is started for each chunk, which must be worth it.
pub const FILTER_CHUNK_BYTES_MAX: u64 = 4 * CHUNK_BYTES_MAX;

/// The most items in one chunk, for runtimes that work item by item: what is told of each of them (lengths,
/// durations, failures) fits gRPC's usual 4 MiB.
pub const CHUNK_ITEMS_MAX: u32 = 1 << 16;

/// The same for filters, which most of all have short lines: a process for so many of them is worth its
/// start. What is told of them all fits [`REPORTS_BYTES_MAX`].
pub const FILTER_CHUNK_ITEMS_MAX: u32 = 1 << 18;

/// The longest message of reports that a coordinator takes: that every item of the largest chunk has failed,
/// with messages, lengths, durations and a part of output.
pub const REPORTS_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The most items in one block of the block-wise runtimes, which fail and are told of as a whole.
pub const BLOCK_ITEMS_MAX: u32 = 1 << 30;

/// What an attempt should take, for runtimes that work item by item.
pub const CHUNK_TARGET_MS: u64 = 20;

/// The largest block of the block-wise runtimes, and what the default schedule grows to.
pub const BLOCK_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// The first block of the default schedule.
pub const BLOCK_BYTES_MIN: u64 = 64 * 1024;

/// Blocks of one size before the default schedule doubles it.
pub const BLOCKS_PER_SIZE: u64 = 8;

/// Input that is held for retries, and that gates cutting.
pub const INFLIGHT_BYTES_MAX: u64 = 48 * 1024 * 1024;

/// Input that is read ahead of the cutting, in blocks.
pub const READ_AHEAD_BLOCKS: usize = 3;

/// What the input is read in, at first; one longer item grows its block.
pub const READ_BLOCK_BYTES: usize = 1024 * 1024;

/// What is kept of all lists of items but the first, for their product.
pub const LISTS_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Accepted chunks that wait in memory for an earlier one; what is beyond goes to the spill.
pub const REORDER_BYTES_MAX: u64 = 48 * 1024 * 1024;

/// The part of the reorder buffer that may lie on disk.
pub const SPILL_BYTES_MAX: u64 = 64 * 1024 * 1024 * 1024;

/// What is written to the spill at once.
pub const SPILL_BATCH_BYTES: u64 = 1024 * 1024;

/// What is on its way to the spill and still counts as memory.
pub const SPILL_QUEUE_BYTES: u64 = 8 * 1024 * 1024;

/// Output that one worker may have on the way, unstored.
pub const OUTPUT_WINDOW_BYTES: u64 = 4 * 1024 * 1024;

/// Payload that may be on the way between a coordinator and a worker, each way, before it is known how
/// fast the network is: one part of output and a grant's step.
pub const PACE_WINDOW_BYTES: u64 = 2 * PART_BYTES_MIN;

/// Pings of one stream whose answers are waited for.
pub const PINGS_MAX: usize = 64;

/// Input that one session may have waiting on a worker, not yet handed to a slot.
pub const INPUT_WINDOW_BYTES: u64 = 32 * 1024 * 1024;

/// Parts of input between the session and the slot that runs the attempt.
pub const SLOT_INPUT_PARTS: usize = 4;

/// Output that a running attempt may hold on the worker before the process that prints it waits.
pub const ATTEMPT_OUTPUT_BYTES: u64 = 8 * 1024 * 1024;

/// Output of one session that a worker holds before no further attempt of it starts there.
pub const SESSION_OUTPUT_BYTES: u64 = 64 * 1024 * 1024;

/// A part of output is not cut smaller than this to fit what is granted.
pub const PART_BYTES_MIN: u64 = 64 * 1024;

/// What the pipes of a process are asked to hold, where the system allows it.
pub const PIPE_BYTES: usize = 1024 * 1024;

/// What is read from a process or written to it before the other side has its turn.
pub const TURN_BYTES: usize = 2 * 1024 * 1024;

/// Small results of a slot that share a buffer.
pub const ARENA_BYTES: usize = 64 * 1024;

/// Output bytes waiting for the sink (standard output or a file).
pub const SINK_QUEUE_BYTES: u64 = 8 * 1024 * 1024;

/// Small results that the sink gathers before it writes; larger ones are written as they are.
pub const SINK_BUFFER_BYTES: usize = 256 * 1024;

/// Characters of an item that lines for people show.
pub const ITEM_CHARS_SHOWN: usize = 40;

/// Attempts that a worker holds beyond its slots, for all of its sessions.
pub const QUEUE_MAX: u32 = 4_096;

/// Attempts that a worker holds for one coordinator, those among them that have ended and whose results
/// are not accepted. So many may be assigned to it at once, and as many may have ended.
pub const ATTEMPTS_HELD_MAX: usize = 2 * (QUEUE_MAX as usize + SLOTS_MAX as usize);

/// Results of a worker that are not durable yet, at which nothing new is sent to it: enough for a worker
/// not to wait for a disk that takes its time, and few enough for what else it may hold.
pub const UNSETTLED_MAX: usize = 3 * ATTEMPTS_HELD_MAX / 8;

/// Attempts that are sent ahead to one slot at the most.
pub const PREFETCH_PER_SLOT_MAX: u32 = 2_048;

/// Slots of one worker.
pub const SLOTS_MAX: u32 = 4_096;

/// Coordinators that one worker serves at a time.
pub const SESSIONS_MAX: usize = 64;

/// Connections that a worker holds open.
pub const CONNECTIONS_MAX: usize = 256;

/// Connections to a worker that have not proved themselves yet.
pub const HANDSHAKES_MAX: usize = 128;

/// Refusals at a worker's door that are remembered, so that each is said once.
pub const REFUSALS_REMEMBERED: usize = 64;

/// Calls that a worker opens at a time, over all connections: a session and a health check of every
/// coordinator, should they all come back at once.
pub const CALLS_OPENING_MAX: usize = 2 * SESSIONS_MAX;

/// Reports that wait for a coordinator that does not read, before its orders are not read either.
pub const REPORTS_WAITING_MAX: usize = 4 * BATCH_ENTRIES_MAX;

/// Coordinators whose last epoch a worker remembers.
pub const EPOCHS_REMEMBERED: usize = 1_024;

/// How long a draining worker waits for its last results to be accepted, past its deadline.
pub const DRAIN_ACCEPT_MS: u64 = 2_000;

/// Jobs that are open on one session of a worker at a time.
pub const JOBS_PER_SESSION_MAX: usize = 1_024;

/// Workers of one coordinator.
pub const WORKERS_MAX: usize = 4_096;

/// The longest argument that Linux passes to a process (MAX_ARG_STRLEN less the closing NUL).
pub const ARGUMENT_BYTES_MAX: usize = 128 * 1024 - 1;

/// The longest item that a function registered in a worker is called with.
pub const ITEM_BYTES_MAX: usize = 1024 * 1024 * 1024;

/// What is kept of an item's standard error: the last bytes of it.
pub const STDERR_TAIL_BYTES: usize = 4 * 1024;

/// What is kept of the standard error of all items of one attempt.
pub const STDERR_ATTEMPT_BYTES: usize = 256 * 1024;

/// Messages of the failed items of one attempt: beyond it only their kinds are told.
pub const ATTEMPT_MESSAGE_BYTES: usize = 1024 * 1024;

/// The longest message of a failure.
pub const MESSAGE_BYTES_MAX: usize = 16 * 1024;

/// What one item may print (`--max-output`), unless told.
pub const MAX_OUTPUT_BYTES: u64 = 1024 * 1024 * 1024;

/// Failed items that the summary names.
pub const SUMMARY_FAILURES: usize = 5;

/// Worker deaths that may be charged to what they were running (`--crash-limit`), unless told.
pub const CRASH_LIMIT: u32 = 3;

/// More runs of a failed item (`--retries`), unless told.
pub const RETRIES: u32 = 1;

/// How long a map waits for a first usable worker (`--wait-workers`), unless told.
pub const WAIT_WORKERS_S: u64 = 60;

/// The body of a unary call that is kept for repeating it; a longer one is sent once.
pub const CALL_KEPT_BYTES_MAX: usize = 64 * 1024;

/// The pause before a unary call is repeated for the first time; it doubles for each time.
pub const CALL_RETRY_MS: u64 = 50;

/// The longest pause before a unary call is repeated.
pub const CALL_RETRY_MS_MAX: u64 = 1_000;

/// How long a worker may take to say whether it is well, over all tries.
pub const HEALTH_MS: u64 = 5_000;

/// How often a worker is asked again whether it is well.
pub const HEALTH_RETRIES: u32 = 3;

/// The payload by which `widemap doctor` finds out whether a way carries more than one packet at a time.
pub const DOCTOR_PAYLOAD_BYTES: usize = 6 * 1024;

/// Workers that `widemap doctor` asks at a time.
pub const DOCTOR_ASKED_MAX: usize = 32;

/// Interfaces on which `widemap doctor` listens for itself.
pub const DOCTOR_INTERFACES_MAX: usize = 8;

/// How long `widemap doctor` listens for others by mDNS, and for itself.
pub const DOCTOR_LISTEN_MS: u64 = 1_000;

/// How far a worker's wall clock may be from this host's before `widemap doctor` warns.
pub const DOCTOR_CLOCK_MS_MAX: u64 = 5_000;

/// Names, labels and versions on the wire.
pub const NAME_BYTES_MAX: usize = 256;

/// Chunks that the scheduler asks for at a time.
pub const CUT_CHUNKS_MAX: u32 = 1_024;

/// Queued chunks that one event looks at, where the first ones must wait for a certain worker.
pub const QUEUE_LOOKED_AT_MAX: usize = 16;

/// Speculative attempts of a job, in percent of all of its attempts; one is always allowed.
pub const SPECULATIVE_PERCENT_MAX: u64 = 25;

/// Failures in a row that succeeded elsewhere before a worker is excluded.
pub const BLAME_MAX: u32 = 3;

/// How long a worker is excluded at first; it doubles for each time.
pub const EXCLUSION_MS: u64 = 1_000;

/// How long a worker is excluded at the most.
pub const EXCLUSION_MS_MAX: u64 = 60_000;

/// Worker deaths at which a chunk was there, each charged to another or while it was waiting,
/// before it is charged all the same: it may have started unnoticed.
pub const DEATHS_NEAR_MAX: u32 = 2;

/// Jobs that have ended of which the scheduler still knows the counts.
pub const COUNTS_KEPT: usize = 64;

/// Attempts of a job that did not succeed and are remembered, for `widemap explain`.
pub const HISTORY_MAX: usize = 1_024;

/// The same, of those that did.
pub const HISTORY_RECENT_MAX: usize = 64;

/// Jobs that have ended and whose attempts are remembered, until the next start.
pub const PAST_JOBS_MAX: usize = 64;

/// Jobs of a service that are open at a time: their input is being read, and they share the workers.
pub const JOBS_OPEN_MAX: usize = 64;

/// How long workers keep attempts and results for a coordinator that serves and is away, in milliseconds.
pub const SERVICE_LEASE_MS: u64 = 300_000;

/// Workers that are dead and whose names a coordinator that serves still knows.
pub const DEAD_KEPT_MAX: usize = 1_024;

/// A coordinator that starts again waits so long for its former workers before it gives out work, in
/// milliseconds: what they hold need not run again.
pub const RETURN_MS: u64 = 2_000;

/// How often a service publishes how far its jobs are, in milliseconds.
pub const STATUS_MS: u64 = 500;

/// How often a service looks for jobs that have ended long enough ago to be removed, in milliseconds.
pub const KEEP_CHECK_MS: u64 = 60_000;

/// Input of one of its jobs that is kept in memory until its results are final; more of it is read again
/// where it is needed.
pub const KEPT_INPUT_BYTES: u64 = 4 * 1024 * 1024;

/// Lines of one item's standard error that are shown: the last ones.
pub const STDERR_LINES_SHOWN: usize = 20;

/// Characters of a message from elsewhere that are shown.
pub const LINE_CHARS_SHOWN: usize = 400;

/// The longest name that is announced: with its key it must fit one property of an mDNS TXT record,
/// 255 bytes.
pub const ANNOUNCED_NAME_BYTES_MAX: usize = 250;

/// Announced instances that are known at a time, far more than workers can be used.
pub const ANNOUNCEMENTS_MAX: usize = 16_384;

/// Addresses of one announced instance that are told of.
pub const ANNOUNCED_ADDRESSES_MAX: usize = 16;

/// How often the mDNS daemon of this process is looked at.
pub const MDNS_CHECK_MS: u64 = 1_000;

/// Checks that it may leave unanswered before it is replaced.
pub const MDNS_CHECKS_UNANSWERED_MAX: u32 = 3;

/// Records that it may remember before it is replaced: a worker has four, and more if it has more
/// addresses. One can be 9 KB long.
pub const MDNS_RECORDS_MAX: i64 = 8 * WORKERS_MAX as i64;

/// Times of records to come that it may remember before it is replaced.
pub const MDNS_TIMERS_MAX: i64 = 8 * MDNS_RECORDS_MAX;

/// How long nothing is heard by mDNS after the daemon had to be given up; it doubles each time.
pub const MDNS_PAUSE_MS: u64 = 100;

/// How long nothing is heard after that at the most.
pub const MDNS_PAUSE_MS_MAX: u64 = 10_000;

/// How long those that were known to a former daemon have to be heard by its successor.
pub const MDNS_CONFIRM_MS: u64 = 10_000;

/// How long a goodbye by mDNS may take.
pub const MDNS_GOODBYE_MS: u64 = 500;

/// How often interfaces that have come or gone are looked for, for mDNS.
pub const MDNS_INTERFACES_S: u32 = 2;

/// Addresses that are tried to reach one worker.
pub const ADDRESSES_MAX: usize = 16;

/// Announced places where no worker has answered yet that are dialled at a time.
pub const HINTED_LINKS_MAX: usize = 256;

/// Announcements of no use that are shown.
pub const UNUSED_SHOWN: usize = 64;

/// How long answers are waited for that come to the one who asked alone: they are sent at once.
pub const MDNS_QUESTION_MS: u64 = 2_000;

/// When such a question is asked again; the pause doubles each time.
pub const MDNS_QUESTION_AGAIN_MS: u64 = 200;

/// Places of one worker that is attached through another, as far as they are only heard of.
pub const ECHOES_MAX: usize = 8;

/// Addresses of an announced place that are tried.
pub const HINTED_ADDRESSES_MAX: usize = 4;

/// Jobs of a coordinator that serves which have not ended, unless told (`--jobs-max`).
pub const JOBS_WAITING_MAX: usize = 10_000;

/// Submissions that are on their way in at a time.
pub const SUBMISSIONS_MAX: usize = 256;

/// A submission that wants to run while it comes begins once so many bytes of its items are there: what is
/// shorter is there as soon.
pub const BEGIN_BYTES: u64 = 4 << 20;

/// Or once it has come for so long, in milliseconds.
pub const BEGIN_MS: u64 = 100;

/// What users ask of the driver and waits for its turn.
pub const REQUEST_QUEUE: usize = 64;

/// How long the driver may take to answer what a user asks.
pub const REQUEST_MS: u64 = 10_000;

/// Jobs in one page of a list.
pub const JOBS_LISTED_MAX: usize = 1_000;

/// The journal makes durable what has gathered in so many milliseconds, or so many bytes of it.
pub const JOURNAL_COMMIT_MS: u64 = 20;

/// See [`JOURNAL_COMMIT_MS`].
pub const JOURNAL_COMMIT_BYTES: u64 = 4 * 1024 * 1024;

/// Bytes that wait for the journal's disk; beyond it no more results are asked for.
pub const JOURNAL_QUEUE_BYTES: u64 = 64 * 1024 * 1024;

/// A record of the journal's facts is not made longer than about that.
pub const JOURNAL_RECORD_BYTES: usize = 256 * 1024 * 1024;

/// A segment of the journal's results is not made longer than about that.
pub const JOURNAL_SEGMENT_BYTES: u64 = 1024 * 1024 * 1024;

/// What is handed in goes to the disk each time that so much more of it has come.
pub const DRAFT_SYNC_BYTES: u64 = 16 * 1024 * 1024;

/// Attempts that are told of a job or an item: the latest ones.
pub const ATTEMPTS_TOLD_MAX: usize = 1_000;

/// How often at the most one who watches a job is told of it.
pub const WATCH_MS: u64 = 100;

/// How long a coordinator that serves may take to answer a call, over all tries.
pub const JOBS_CALL_MS: u64 = 15_000;

/// How often it is asked again.
pub const JOBS_CALL_RETRIES: u32 = 5;

/// How long a coordinator that was there and is lost is dialled again by one who collects from it.
pub const COORDINATOR_PATIENCE_MS: u64 = 60_000;

/// The largest share of a job (`--weight`).
pub const WEIGHT_MAX: u32 = 1_000_000;

/// A driver that was not heard of for so long is not alive. It is heard of at least each [`STATUS_MS`].
pub const HEALTH_PATIENCE_MS: u64 = 10_000;

/// Connections at a time that metrics and health are told on.
pub const HTTP_CONNECTIONS_MAX: usize = 64;

/// Who asks for metrics or health has so long to say so.
pub const HTTP_HEAD_MS: u64 = 5_000;

/// What a service keeps of what the items of one job write on their standard error.
pub const JOB_STDERR_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Files that travel with one job, directories counted.
pub const JOB_FILES_MAX: usize = 10_000;

/// The bytes of all their paths, so that a job's description stays far below the size of a message.
pub const JOB_FILES_NAMES_BYTES_MAX: usize = 1024 * 1024;

/// When so many items of a job have failed in the way of a program that is of no use for its runtime, and
/// no other has come out, the job is given up.
pub const UNFIT_ITEMS: u64 = 10;

/// Output of several items that a filter has printed and that is not known to be right. Beyond it they run
/// in smaller groups.
pub const FILTER_GROUP_BYTES: u64 = 16 * 1024 * 1024;

/// The longest Python file that has a function to be mapped.
pub const PYTHON_SOURCE_BYTES_MAX: usize = 1024 * 1024;

/// The longest module of WebAssembly that is mapped.
pub const WASM_MODULE_BYTES_MAX: u64 = 128 * 1024 * 1024;

/// The least urgent that items may be, as for `nice`.
pub const NICE_MAX: u8 = 19;

/// The memory that one block of a module of WebAssembly may take, unless told (`--memory`).
pub const WASM_MEMORY_BYTES: u64 = 1024 * 1024 * 1024;

/// Compiled modules of WebAssembly that a worker keeps for the next job that has them.
pub const WASM_MODULES_KEPT: usize = 8;

/// What a worker keeps of files of jobs on its disk, unless told (`--file-cache`).
pub const FILE_CACHE_BYTES: u64 = 4 * 1024 * 1024 * 1024;
