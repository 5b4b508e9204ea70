//! What is said at the start of what the kernel can do, and where it can't.

use std::time::{Duration, Instant};

use harness::process::{Process, eventually};
use harness::proxy::{Proxy, command};

use crate::scene::{Front, with_kernel_tls};
