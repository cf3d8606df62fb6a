//! The only file that knows mdns-sd: announces a worker, and hears of others.
