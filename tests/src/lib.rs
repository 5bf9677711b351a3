//! What the tests share: a runtime in a directory of its own, and a watchdog.
