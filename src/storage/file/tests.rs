//! Faults of the disk, injected behind the database's own interface.

mod faults;
mod ledger;
mod probe;
mod sim;
