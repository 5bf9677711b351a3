//! Failover: who is to serve a name, whether who does has failed, and changes of hands.

#![allow(unsafe_code)] // exports

use std::ffi::c_int;

use ipc_core::{
    FailoverPlan, FailoverStrategy, Failure, FailureKind as Kind, HealthCheck, ProcessEnd,
    ServiceId, Status, control::MOST_MEMBERS,
};

use crate::{
    boundary::{self, guard},
    error::{Failure as Refusal, IPC_OK},
    runtime,
    types::{FailoverConfig, FailureInfo, FailureKind, HealthCheckConfig, service_id_t},
};

const ID_BYTES: usize = size_of::<service_id_t>();

/// Says who is to serve a name, in which order, and when who does is passed over. service is the
/// name's id, or an instance's; config->primary and config->replicas are instances of it in their
/// order, or 0 and NULL for the order in which they came; those that are not named come behind. A
/// member of config->health_check that is 0 is the default: 10 ms, 5 ms, 3. It holds until it is
/// said otherwise, beyond restarts of ipcd. If another one is the primary now the name changes
/// hands, in order and without an error at any caller; this does not wait for it. Nothing is kept
/// of config.
///
/// IPC_EINVAL: a NULL, no such strategy, an interval or timeout over 60000, a threshold over 100,
/// more than 63 replicas, or one twice. IPC_ENOENT: nobody serves the name, or an instance is not
/// of it. IPC_EACCES: this process is no member of the group, and may give no orders. IPC_EEXIST:
/// the node file says it. IPC_EQUOTA: too many names are configured. IPC_ENORUNTIME: ipcd is gone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_configure_failover(
    service: service_id_t,
    config: *mut FailoverConfig,
) -> c_int {
    guard(|| {
        // SAFETY: clauses 1 and 3 of the boundary.
        let config = unsafe { boundary::value(config)? };
        let count = config.replica_count as usize;
        if count >= MOST_MEMBERS {
            return Err(Status::INVALID.into());
        }
        // SAFETY: the same, of what it points to: as many ids as it says, wherever they lie.
        let bytes = unsafe { boundary::bytes(config.replicas.cast(), count * ID_BYTES)? };
        let ids = bytes.chunks_exact(ID_BYTES).filter_map(|id| id.try_into().ok());
        let replicas: Vec<service_id_t> = ids.map(service_id_t::from_ne_bytes).collect();
        let plan = plan(service, &config, &replicas)?;
        runtime::current()?.node.configure_failover(&plan)?;
        Ok(IPC_OK)
    })
}

/// Finds out whether an instance has failed: ipcd looks at its process, and has its loop answer.
/// service is a name's id, which stands for who serves it, or an instance's; one that is gone is
/// remembered for a while. It is no failure to be busy in a handler, unless the node file says for
/// how long that may last. Returns when it is known: for one that is silent, when its health check
/// says so, or after a second where there is none.
///
/// IPC_EINVAL: a NULL. IPC_ENOENT: nothing is known of it. IPC_EFULL: too many ask at a time.
/// IPC_ENORUNTIME: ipcd is gone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_detect_service_failure(
    service: service_id_t,
    info: *mut FailureInfo,
) -> c_int {
    guard(|| {
        // SAFETY: clauses 1 and 3 of the boundary.
        let info = unsafe { boundary::out(info)? };
        let failure = runtime::current()?.node.detect_failure(ServiceId::new(service))?;
        info.set(told(failure));
        Ok(IPC_OK)
    })
}

/// Has another instance serve a name, and returns when it does. failed_service is the name's id,
/// or that of the instance which serves it; backup the instance that is to serve, 0 for the next in
/// the order. Who serves finishes what it has taken, and stands by; no caller hears of it. One that
/// does not let go within two seconds is passed over.
///
/// IPC_ENOENT: nobody serves the name, or nobody stands by. IPC_EALREADY: that instance does not
/// serve. IPC_EEXIST: it changes hands already. IPC_EACCES: this process is no member of the group,
/// and may give no orders. IPC_EPEERDIED: the backup ended meanwhile. IPC_ENORUNTIME: ipcd is gone.
#[unsafe(no_mangle)]
pub extern "C" fn ipc_trigger_failover(
    failed_service: service_id_t,
    backup: service_id_t,
) -> c_int {
    guard(|| {
        let backup = Some(ServiceId::new(backup)).filter(|it| *it != ServiceId::NONE);
        let node = &runtime::current()?.node;
        node.trigger_failover(ServiceId::new(failed_service), backup)?;
        Ok(IPC_OK)
    })
}

/// Reads a configuration, whose numbers come from C.
fn plan(
    service: service_id_t,
    config: &FailoverConfig,
    replicas: &[service_id_t],
) -> Result<FailoverPlan, Refusal> {
    let otherwise = HealthCheck::default();
    let or = |number: u32, default: u32| if number == 0 { default } else { number };
    let HealthCheckConfig { interval_ms, timeout_ms, failure_threshold } = config.health_check;
    let health = HealthCheck {
        interval_ms: or(interval_ms, otherwise.interval_ms),
        timeout_ms: or(timeout_ms, otherwise.timeout_ms),
        threshold: or(failure_threshold, otherwise.threshold),
        ..otherwise
    };
    let strategy = FailoverStrategy::from_number(config.strategy.number());
    let strategy = strategy.ok_or(Refusal::from(Status::INVALID))?;
    // Who is first is told before who comes behind.
    let is_headless = config.primary == 0 && !replicas.is_empty();
    if is_headless || replicas.len() >= MOST_MEMBERS || replicas.contains(&0) {
        return Err(Status::INVALID.into());
    }
    let order = std::iter::once(config.primary).chain(replicas.iter().copied());
    let order = order.filter(|id| *id != 0).map(ServiceId::new).collect();
    Ok(FailoverPlan { service: ServiceId::new(service), strategy, health, order })
}

fn told(failure: Failure) -> FailureInfo {
    FailureInfo {
        failed: failure.kind != Kind::None,
        kind: FailureKind::from(failure.kind),
        instance: failure.instance.get(),
        epoch: failure.epoch,
        detected_at_ns: failure.detected_at_ns,
        last_seen_ns: failure.last_seen_ns,
        exit_status: match failure.end {
            Some(ProcessEnd::Exit(status)) => i32::from(status),
            Some(ProcessEnd::Signal(_)) | None => -1,
        },
        signal: match failure.end {
            Some(ProcessEnd::Signal(signal)) => i32::from(signal),
            Some(ProcessEnd::Exit(_)) | None => 0,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::FailoverStrategy as Number;

    fn config(primary: u32, strategy: u32) -> FailoverConfig {
        FailoverConfig {
            primary,
            replicas: std::ptr::null_mut(),
            replica_count: 0,
            strategy: Number::from_number(strategy),
            health_check: HealthCheckConfig { interval_ms: 0, timeout_ms: 7, failure_threshold: 0 },
        }
    }

    #[test]
    fn how_a_process_ended_is_told_as_the_shell_would() {
        let failure = |end| Failure {
            kind: Kind::Crashed,
            instance: ServiceId::new(7),
            epoch: 3,
            detected_at_ns: 2,
            last_seen_ns: 1,
            end,
        };
        let of = |end| {
            let info = told(failure(end));
            (info.exit_status, info.signal)
        };
        assert_eq!(of(None), (-1, 0));
        assert_eq!(of(Some(ProcessEnd::Exit(0))), (0, 0));
        assert_eq!(of(Some(ProcessEnd::Exit(7))), (7, 0));
        assert_eq!(of(Some(ProcessEnd::Signal(9))), (-1, 9));
    }

    #[test]
    fn what_c_says_is_read_in_its_order_and_with_defaults() {
        let Ok(read) = plan(5, &config(9, 2), &[8, 7]) else { panic!("it is sound") };
        assert_eq!(read.strategy, FailoverStrategy::RoundRobin);
        assert_eq!(read.order, [9, 8, 7].map(ServiceId::new));
        let expected = HealthCheck { timeout_ms: 7, ..HealthCheck::default() };
        assert_eq!(read.health, expected);
        assert!(plan(5, &config(0, 0), &[]).is_ok());
        for (primary, strategy, replicas) in [
            (9, 5, vec![]),
            (9, u32::MAX, vec![]),
            (0, 0, vec![8]),
            (9, 0, vec![0]),
            (9, 0, vec![3; 64]),
        ] {
            assert!(plan(5, &config(primary, strategy), &replicas).is_err());
        }
    }
}
