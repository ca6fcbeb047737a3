//! POSIX patterns (XCU 2.13).
