use super::{
    regions::{Access, RegionEntry},
    *,
};
use proptest::prelude::*;

fn names() -> impl Strategy<Value = String> {
    "[^\\p{Cc}]{1,60}"
}

fn geometries() -> impl Strategy<Value = Geometry> {
    (4_u32..15, 11_u32..24)
        .prop_map(|(cells, slab)| Geometry::new(1 << cells, 1 << slab).expect("in range"))
}

fn introductions() -> impl Strategy<Value = Introduction> {
    (any::<[u64; 3]>(), any::<[u32; 7]>(), any::<bool>(), geometries()).prop_map(
        |(long, id, asymmetric, geometry)| Introduction {
            channel: long[0],
            session: id[0],
            start_ns: long[1],
            asymmetric,
            peer: ServiceId::new(id[1]),
            peer_name: ServiceId::new(id[2]),
            peer_pid: id[3],
            peer_uid: id[4],
            dest: ServiceId::new(id[5]),
            dest_name: ServiceId::new(id[6]),
            geometry,
            permissions: long[2],
            opener: ServiceId::new(id[1]),
            encrypted: asymmetric,
            peer_key: [id[0] as u8; 32],
            bond: Bond {
                epoch: long[0] ^ long[1],
                is_known: !asymmetric,
                opener: [id[1] as u8; 32],
                dest: [id[2] as u8; 32],
            },
        },
    )
}

fn tokens() -> impl Strategy<Value = Box<[u8; TOKEN_BYTES]>> {
    prop::collection::vec(any::<u8>(), TOKEN_BYTES)
        .prop_map(|bytes| Box::new(bytes.try_into().expect("as many")))
}

fn accesses() -> impl Strategy<Value = Access> {
    prop_oneof![Just(Access::None), Just(Access::Read), Just(Access::Write)]
}

fn region_requests() -> impl Strategy<Value = Request> {
    let it = prop_oneof![
        (any::<[u64; 2]>(), any::<Ticket>())
            .prop_map(|([size, claim], ticket)| RegionRequest::Create { size, claim, ticket }),
        (any::<u64>(), any::<u32>(), accesses()).prop_map(|(region, to, access)| {
            RegionRequest::Grant { region, to: ServiceId::new(to), access }
        }),
        any::<u64>().prop_map(|region| RegionRequest::Map { region }),
        any::<u64>().prop_map(|region| RegionRequest::Unmap { region }),
        any::<u64>().prop_map(|after| RegionRequest::List { after }),
    ];
    it.prop_map(Request::Region)
}

fn region_replies() -> impl Strategy<Value = Reply> {
    let it = prop_oneof![
        (any::<u64>(), any::<Ticket>())
            .prop_map(|(region, ticket)| RegionReply::Created { region, ticket }),
        (any::<[u64; 2]>(), any::<bool>(), any::<[u32; 3]>()).prop_map(
            |([region, size], writable, [owner, owner_pid, owner_uid])| {
                let owner = ServiceId::new(owner);
                RegionReply::Mapped { region, size, writable, owner, owner_pid, owner_uid }
            }
        ),
        (any::<[u64; 3]>(), any::<[u32; 5]>(), accesses()).prop_map(
            |([region, size, bytes], [owner, pid, uid, grants, holders], access)| {
                let owner = ServiceId::new(owner);
                RegionReply::Entry(RegionEntry {
                    region,
                    size,
                    bytes,
                    owner,
                    pid,
                    uid,
                    grants,
                    holders,
                    access,
                })
            }
        ),
        (any::<u64>(), any::<bool>())
            .prop_map(|(region, revoked)| RegionReply::Ended { region, revoked }),
    ];
    it.prop_map(Reply::Region)
}

fn requests() -> impl Strategy<Value = Request> {
    prop_oneof![
        (any::<[bool; 2]>(), any::<[u8; 32]>()).prop_map(|([asymmetric, encrypts], key)| {
            Request::Hello { asymmetric, encrypts, key }
        }),
        (any::<[u32; 3]>(), any::<Ticket>(), names()).prop_map(|(n, ticket, name)| {
            let [flags, claim_instance, claim_name] = n;
            Request::Register { flags, claim_instance, claim_name, ticket, name }
        }),
        any::<u32>().prop_map(|id| Request::Unregister { instance: ServiceId::new(id) }),
        names().prop_map(|name| Request::Discover { name }),
        names().prop_map(|name| Request::Wait { name }),
        any::<u32>().prop_map(|request| Request::Forget { request }),
        (any::<u32>(), geometries())
            .prop_map(|(id, geometry)| Request::Connect { dest: ServiceId::new(id), geometry }),
        any::<u32>().prop_map(|id| Request::ConnectBySocket { dest: ServiceId::new(id) }),
        Just(Request::SharesNoMemory),
        any::<[u32; 2]>().prop_map(|[topic, after]| Request::Listeners { topic, after }),
        (any::<u64>(), any::<i32>()).prop_map(|(channel, status)| Request::Accept {
            channel,
            status: Status::from_code(status)
        }),
        any::<u32>().prop_map(|after| Request::List { after }),
        Just(Request::Ping),
        "\\PC{0,900}".prop_map(|text| Request::Command { text }),
        any::<u64>().prop_map(|channel| Request::Closed { channel }),
        any::<(u32, u64)>()
            .prop_map(|(id, epoch)| Request::Promoted { instance: ServiceId::new(id), epoch }),
        any::<[u32; 2]>().prop_map(|[failed, backup]| Request::Trigger {
            failed: ServiceId::new(failed),
            backup: ServiceId::new(backup)
        }),
        any::<u64>().prop_map(|after| Request::History { after }),
        any::<[u32; 2]>()
            .prop_map(|[id, mark]| Request::Suspect { instance: ServiceId::new(id), mark }),
        any::<u32>().prop_map(|id| Request::Detect { service: ServiceId::new(id) }),
        any::<u32>().prop_map(|id| Request::Standing { service: ServiceId::new(id) }),
        plans().prop_map(Request::Configure),
        (any::<[u32; 2]>(), any::<u64>()).prop_map(|([id, number], busy_us)| Request::Pulse {
            instance: ServiceId::new(id),
            number,
            busy_us
        }),
        any::<u32>().prop_map(|segment| Request::Board { segment }),
        any::<u64>().prop_map(|after| Request::Boards { after }),
        any::<[u32; 3]>().prop_map(|[instance, bytes, for_ms]| Request::Payloads {
            instance: ServiceId::new(instance),
            bytes,
            for_ms
        }),
        any::<[u32; 3]>().prop_map(|[instance, every_us, for_ms]| Request::Trace {
            instance: ServiceId::new(instance),
            every_us,
            for_ms
        }),
        (any::<bool>(), introductions())
            .prop_map(|(serves, introduction)| Request::Holds { serves, introduction }),
        any::<[u32; 3]>().prop_map(|n| Request::Verify {
            src: ServiceId::new(n[0]),
            dest: ServiceId::new(n[1]),
            operation: n[2]
        }),
        (any::<[u32; 2]>(), any::<u64>()).prop_map(|(n, permissions)| Request::IssueToken {
            dest: ServiceId::new(n[0]),
            permissions,
            lifetime_ms: n[1]
        }),
        (any::<u32>(), tokens())
            .prop_map(|(id, token)| Request::CheckToken { presenter: ServiceId::new(id), token }),
        Just(Request::PublicKey),
        region_requests(),
        (any::<u32>(), "[^\\p{Cc}]{0,60}").prop_map(|(id, name)| Request::Topic { id, name }),
        (any::<[u32; 3]>(), names()).prop_map(|([topic, ring, follows], name)| {
            Request::Advertise { topic, ring, follows, name }
        }),
        (any::<[u32; 2]>(), names()).prop_map(|([topic, flags], name)| Request::Subscribe {
            topic,
            flags,
            name
        }),
        notes().prop_map(Request::Bus),
        any::<u32>().prop_map(|after| Request::Topics { after }),
        names().prop_map(|name| Request::Keep { name }),
        any::<u64>().prop_map(|after| Request::Kept { after }),
    ]
}

fn notes() -> impl Strategy<Value = BusNote> {
    (1_u32..11, any::<u32>(), any::<[u64; 3]>()).prop_map(
        |(step, topic, [ring, subscriber, value])| BusNote {
            step: BusStep::from_number(step).expect("a step"),
            topic,
            ring,
            subscriber,
            value,
        },
    )
}

fn topics() -> impl Strategy<Value = TopicEntry> {
    (any::<[u32; 4]>(), any::<u64>(), any::<bool>(), names()).prop_map(
        |([id, publishers, subscribers, reliable], bytes, retained, name)| TopicEntry {
            id,
            bytes,
            publishers,
            subscribers,
            reliable,
            retained,
            name,
        },
    )
}

fn entries() -> impl Strategy<Value = Entry> {
    (any::<[u32; 7]>(), names()).prop_map(|(n, name)| Entry {
        instance: ServiceId::new(n[0]),
        name_id: ServiceId::new(n[1]),
        pid: n[2],
        uid: n[3],
        rank: n[4],
        flags: n[5],
        channels: n[6],
        name,
    })
}

fn changes() -> impl Strategy<Value = Change> {
    (any::<[u64; 3]>(), any::<[u32; 6]>(), 0_u32..5).prop_map(|(long, n, cause)| Change {
        number: long[0],
        name: ServiceId::new(n[0]),
        from: ServiceId::new(n[1]),
        to: ServiceId::new(n[2]),
        epoch: long[1],
        cause: Cause::from_number(cause).expect("in range"),
        at_ns: long[2],
        took_us: n[3],
        detected_us: n[4],
        promoted_us: n[5],
    })
}

fn listeners() -> impl Strategy<Value = Listener> {
    (any::<[u32; 4]>(), any::<bool>(), any::<u64>()).prop_map(|(n, sleeps, lost)| Listener {
        node: ServiceId::new(n[0]),
        pid: n[1],
        uid: n[2],
        sleeps,
        reliable: n[3],
        lost,
    })
}

fn checks() -> impl Strategy<Value = HealthCheck> {
    (1..=60_000_u32, 1..=60_000_u32, 1..=100_u32, 0..=3_600_000_u32).prop_map(
        |(interval_ms, timeout_ms, threshold, busy_ms)| HealthCheck {
            interval_ms,
            timeout_ms,
            threshold,
            busy_ms,
        },
    )
}

fn plans() -> impl Strategy<Value = FailoverPlan> {
    (any::<u32>(), 0..5_u32, checks(), prop::collection::vec(any::<u32>(), 0..9)).prop_map(
        |(service, strategy, health, order)| FailoverPlan {
            service: ServiceId::new(service),
            strategy: FailoverStrategy::from_number(strategy).expect("in range"),
            health,
            order: order.into_iter().map(ServiceId::new).collect(),
        },
    )
}

fn failures() -> impl Strategy<Value = Failure> {
    let ends = prop_oneof![
        Just(None),
        any::<u8>().prop_map(|it| Some(ProcessEnd::Exit(it))),
        any::<u8>().prop_map(|it| Some(ProcessEnd::Signal(it))),
    ];
    (0..5_u32, any::<u32>(), any::<[u64; 3]>(), ends).prop_map(|(kind, id, long, end)| Failure {
        kind: FailureKind::from_number(kind).expect("in range"),
        instance: ServiceId::new(id),
        epoch: long[0],
        detected_at_ns: long[1],
        last_seen_ns: long[2],
        end,
    })
}

fn standings() -> impl Strategy<Value = Standing> {
    (any::<[u32; 2]>(), any::<[u64; 2]>(), 0..5_u32, checks(), any::<[bool; 2]>()).prop_map(
        |(n, long, strategy, health, [configured, suspected])| Standing {
            name: ServiceId::new(n[0]),
            serves: ServiceId::new(n[1]),
            epoch: long[0],
            strategy: FailoverStrategy::from_number(strategy).expect("in range"),
            health,
            configured,
            suspected,
            suspicions: long[1],
        },
    )
}

fn replies() -> impl Strategy<Value = Reply> {
    prop_oneof![
        (any::<u32>(), any::<u64>(), any::<u32>(), names())
            .prop_map(|(id, bytes, flags, name)| Reply::Topic { id, bytes, flags, name }),
        (any::<[u32; 3]>(), any::<[u64; 2]>()).prop_map(
            |([topic, publisher, pid], [ring, follows])| Reply::Ring {
                topic,
                ring,
                follows,
                publisher: ServiceId::new(publisher),
                pid,
            }
        ),
        notes().prop_map(Reply::Bus),
        (prop::collection::vec(topics(), 0..12), any::<u32>())
            .prop_map(|(entries, next)| Reply::Topics { entries, next }),
        (prop::collection::vec(listeners(), 0..12), any::<u32>())
            .prop_map(|(entries, next)| Reply::Listeners { entries, next }),
        any::<[u32; 2]>()
            .prop_map(|n| Reply::Welcome { node: ServiceId::new(n[0]), kernel_pid: n[1] }),
        (any::<[u32; 2]>(), any::<Ticket>()).prop_map(|(n, ticket)| Reply::Registered {
            instance: ServiceId::new(n[0]),
            name: ServiceId::new(n[1]),
            ticket
        }),
        Just(Reply::Done),
        any::<u32>().prop_map(|id| Reply::Found { name: ServiceId::new(id) }),
        introductions().prop_map(|it| Reply::Connected(Box::new(it))),
        (any::<u64>(), names()).prop_map(|(next, name)| Reply::Kept { next, name }),
        introductions().prop_map(|it| Reply::Incoming(Box::new(it))),
        (prop::collection::vec(entries(), 0..12), any::<u32>())
            .prop_map(|(entries, next)| Reply::Page { entries, next }),
        (any::<[u64; 2]>(), any::<[u32; 3]>()).prop_map(|(long, n)| Reply::State {
            pid: n[0],
            uptime_ms: long[0],
            nodes: n[1],
            services: n[2],
            channels: long[1]
        }),
        any::<i32>().prop_map(|code| Reply::Refused(Status::from_code(code))),
        any::<u64>().prop_map(|length| Reply::Answer { length }),
        any::<u64>().prop_map(|channel| Reply::Revoked { channel }),
        (any::<[u32; 3]>(), any::<u64>()).prop_map(|(n, next)| Reply::Board {
            node: ServiceId::new(n[0]),
            pid: n[1],
            segment: n[2],
            next
        }),
        any::<[u32; 3]>().prop_map(|[instance, bytes, for_ms]| Reply::Payloads {
            instance: ServiceId::new(instance),
            bytes,
            for_ms
        }),
        any::<[u32; 3]>().prop_map(|[instance, every_us, for_ms]| Reply::Trace {
            instance: ServiceId::new(instance),
            every_us,
            for_ms
        }),
        tokens().prop_map(|token| Reply::Token { token }),
        any::<u64>().prop_map(|permissions| Reply::Permitted { permissions }),
        any::<[u8; 32]>().prop_map(|key| Reply::PublicKey { key }),
        region_replies(),
        (
            any::<[u64; 3]>(),
            any::<[u32; 2]>(),
            any::<bool>(),
            checks(),
            prop::collection::vec(any::<u32>(), 0..9)
        )
            .prop_map(|(long, n, ordered, health, ids)| Reply::Group(Group {
                name: ServiceId::new(n[0]),
                epoch: long[0],
                limit: long[1],
                served_at: long[2],
                flags: n[1],
                ordered,
                health,
                members: ids.into_iter().map(ServiceId::new).collect(),
            })),
        any::<(u32, u64)>()
            .prop_map(|(id, epoch)| Reply::Promote { instance: ServiceId::new(id), epoch }),
        any::<u32>().prop_map(|id| Reply::Yield { instance: ServiceId::new(id) }),
        (prop::collection::vec(changes(), 0..9), any::<u64>())
            .prop_map(|(changes, next)| Reply::Changes { next, changes }),
        failures().prop_map(Reply::Failure),
        standings().prop_map(Reply::Standing),
        any::<[u32; 2]>()
            .prop_map(|[id, number]| Reply::Probe { instance: ServiceId::new(id), number }),
    ]
}

proptest! {
    #[test]
    fn requests_survive_the_wire(sequence: u32, request in requests()) {
        let bytes = encode_request(sequence, &request);
        prop_assert!(bytes.len() <= MAX_PACKET);
        prop_assert_eq!(decode_request(&bytes), Ok((sequence, request)));
        for cut in 0..bytes.len() {
            prop_assert!(decode_request(&bytes[..cut]).is_err());
        }
    }

    #[test]
    fn replies_survive_the_wire(sequence: u32, reply in replies()) {
        let bytes = encode_reply(sequence, &reply);
        prop_assert_eq!(decode_reply(&bytes), Ok((sequence, reply)));
        for cut in 0..bytes.len() {
            prop_assert!(decode_reply(&bytes[..cut]).is_err());
        }
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(bytes: Vec<u8>) {
        let _ = decode_request(&bytes);
        let _ = decode_reply(&bytes);
    }

    #[test]
    fn what_fits_a_page_fits_a_packet(entries in prop::collection::vec(entries(), 0..200)) {
        let fits = page_fits(&entries);
        let reply = Reply::Page { entries: entries[..fits].to_vec(), next: 0 };
        prop_assert!(encode_reply(0, &reply).len() <= MAX_PACKET);
        prop_assert!(entries.is_empty() || fits > 0);
    }
}

/// Found by the fuzz target `control`: such a packet was taken for another one.
#[test]
fn a_status_where_none_belongs_is_refused() {
    let mut bytes = encode_request(7, &Request::Ping);
    bytes[8] = 1;
    assert_eq!(decode_request(&bytes), Err(Malformed::Field));
    let mut bytes = encode_reply(7, &Reply::Done);
    bytes[11] = 0xFF;
    assert_eq!(decode_reply(&bytes), Err(Malformed::Field));
}

#[test]
fn names_are_checked() {
    assert!(check_name("echo").is_ok());
    assert!(check_name("été/архив").is_ok());
    assert!(check_name("").is_err());
    assert!(check_name("a\0b").is_err());
    assert!(check_name("a\nb").is_err());
    assert!(check_name(&"x".repeat(255)).is_ok());
    assert!(check_name(&"x".repeat(256)).is_err());
}
