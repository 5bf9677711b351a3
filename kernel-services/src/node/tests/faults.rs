//! Every message, word for word.

use super::{super::*, FILE, node, said, wrong};

/// One service, so that a case is what follows in its table.
const A: &str = "[service.a]\nexecutable = 'a'\n";

fn expect(cases: &[(&str, &[&str])]) {
    for (text, expected) in cases {
        assert_eq!(said(&wrong(text)), *expected, "{text}");
    }
}

/// What follows `A` begins in line 3.
fn expect_in_service(cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        assert_eq!(said(&wrong(&format!("{A}{text}"))), [*expected], "{text}");
    }
}

#[test]
fn a_fault_is_shown_where_it_stands() {
    let text = "[service.api]\nexecutable = \"api\"\n  restrat = \"permanent\"\n";
    let Err(error) = parse(text, "node.toml".as_ref()) else { panic!("it is taken") };
    assert_eq!(
        error.to_string(),
        "node.toml:3:3: unknown key \"restrat\"; did you mean \"restart\"?\n\
         \x20 |\n\
         3 |   restrat = \"permanent\"\n\
         \x20 |   ^^^^^^^"
    );
}

#[test]
fn all_faults_are_told_at_once_in_the_order_of_the_file() {
    expect(&[(
        "metrics = 1\n[service.a]\nreplicas = 0\ndepends_on = ['b']\n[group.g]\nmembers = []\n\
         [[rule]]\nfrom = 'any'\nto = 'any'\nallow = 'cal'\n[limits.user]\nnames = -1",
        &[
            "1:11: metrics takes a string, not a whole number; put it in quotes",
            "2:10: [service.a] has no executable; write executable = \"path/of/the/program\"",
            "3:12: replicas is 0; it takes 1 to 64",
            "4:15: a depends on \"b\", which is not here; services are a",
            "5:8: [group.g] has no members; write members = [\"SERVICE\", ...]",
            "10:9: unknown operation \"cal\"; did you mean \"call\"?",
            "12:9: names is -1; it takes 0 to 4294967295",
        ],
    )]);
    let many = "x = 1\n".replace('x', "xxxx");
    let text: String = (0..40).map(|index| many.replace("xxxx", &format!("xxxx{index}"))).collect();
    let shown = NodeError::Wrong { faults: wrong(&text) }.to_string();
    assert_eq!(shown.matches("unknown key").count(), 30);
    assert!(shown.ends_with("\n\n... and 10 more"), "{shown}");
}

#[test]
fn what_is_no_toml_is_told_line_by_line() {
    expect(&[
        (
            "a =\n[b\n\n[c]\nd = 'a' b\nrestart = permanent",
            &[
                "1:4: a value is missing, or a text without quotes; put it in quotes",
                "2:3: this is not TOML: unclosed table, expected `]`; write [table] or key = \
                 value; https://toml.io has the rest",
                "5:9: this is not TOML: unexpected key or value, expected newline, `#`; write \
                 [table] or key = value; https://toml.io has the rest",
                "6:11: a value is missing, or a text without quotes; put it in quotes",
            ],
        ),
        (
            "[service.a]\nexecutable = 'a'\nexecutable = 'b'",
            &["3:1: executable is here for the second time; leave one of them"],
        ),
        ("[service.a]\n[service.a]", &["2:10: a is here for the second time; leave one of them"]),
    ]);
}

#[test]
fn tables_and_names() {
    let long = format!("[service.{0}]\nexecutable = 'a'", "n".repeat(65));
    expect(&[
        ("servce.a = 1", &["1:1: unknown key \"servce\"; did you mean \"service\"?"]),
        (
            "zz = 1",
            &["1:1: unknown key \"zz\"; a node file takes log_directory, metrics, monitor, \
                 service, group, \
             failover, rule, route, topic, limits"],
        ),
        (
            "service = 1",
            &["1:11: service takes tables with names, not a whole number; begin each with \
             [service.NAME]"],
        ),
        (
            "[[group]]",
            &["1:1: group takes tables with names, not a list; begin each with [group.NAME]"],
        ),
        ("service.a = 'x'", &["1:13: a takes a table, not a string; begin it with [service.a]"]),
        (
            "group.a = 1.5",
            &["1:11: a takes a table, not a number with a fraction; begin it with [group.a]"],
        ),
        ("[rule]", &["1:1: rule takes a list, not a table; begin each with [[rule]]"]),
        ("rule = [1]", &["1:9: rule takes a table, not a whole number; begin it with [[rule]]"]),
        ("limits = true", &["1:10: limits takes a table, not a boolean; begin it with [limits]"]),
        ("limits.usr = {}", &["1:8: unknown key \"usr\"; did you mean \"user\"?"]),
        (
            "limits.user = 1979-05-27",
            &["1:15: user takes a table, not a date; begin it with [limits.user]"],
        ),
        (&long, &["1:10: the service's name is 65 bytes long; at most 64 fit: shorten it"]),
        (
            "[service.\"a b\"]\nexecutable = 'a'",
            &["1:10: \"a b\" cannot name a service; names consist of a-z A-Z 0-9 - _ . and begin \
             with a letter or digit"],
        ),
        (
            "[service.a]\nexecutable = 'a'\n[group._g]\nmembers = ['a']",
            &["3:8: \"_g\" cannot name a group; names consist of a-z A-Z 0-9 - _ . and begin \
                 with a \
             letter or digit"],
        ),
        (
            "[service.\"\"]\nexecutable = 'a'",
            &["1:10: \"\" cannot name a service; names consist of a-z A-Z 0-9 - _ . and begin \
                 with \
             a letter or digit"],
        ),
        (
            "[monitor]\npayloads = 'name:api'",
            &["2:12: payloads takes a list, not a string; write payloads = [\"name:NAME\"]"],
        ),
        (
            "[monitor]\npayloads = ['runtime', 'api']\npayload = []",
            &[
                "2:13: the runtime itself has no payloads; write \"name:NAME\", \
                 \"name:PREFIX*\" or \"any\"",
                "2:24: \"api\" is nothing to have rights on; write \"any\", \"name:NAME\", \
                 \"name:PREFIX*\" or \"runtime\"",
                "3:1: unknown key \"payload\"; did you mean \"payloads\"?",
            ],
        ),
        (
            "[monitor]\notlp = '127.0.0.1:4318'",
            &["2:8: spans cannot be sent to \"127.0.0.1:4318\"; write \"http://HOST:PORT\", such \
                 as \"http://127.0.0.1:4318\""],
        ),
        (
            "[monitor]\notlp = 'https://a'",
            &["2:8: libipc does not encrypt what it sends to collectors: run one on this \
                 machine; write \"http://HOST:PORT\", such as \"http://127.0.0.1:4318\""],
        ),
        (
            "metrics = 'here'",
            &["1:11: metrics cannot be served at \"here\"; write \"127.0.0.1:9464\", or \
             \"unix:PATH\" for a socket"],
        ),
        (
            "metrics = '0.0.0.0:80'",
            &["1:11: metrics are not served at 0.0.0.0:80, but on this machine only; write \
             \"127.0.0.1:9464\", or \"unix:PATH\" for a socket"],
        ),
        (
            "metrics = '127.0.0.1:0'",
            &["1:11: metrics need a port of their own; write \"127.0.0.1:9464\", or \
                 \"unix:PATH\" \
             for a socket"],
        ),
        (
            "log_directory = ''",
            &["1:17: log_directory is empty; write a path; \".\" is the directory of this file"],
        ),
    ]);
}

#[test]
fn the_program() {
    expect(&[(
        "[service.a]\nexecutable = ''",
        &["2:14: executable is empty; write a path; \".\" is the directory of this file"],
    )]);
    expect_in_service(&[
        ("arguments = 'x'", "3:13: arguments takes a list, not a string; put it in brackets: [ ]"),
        (
            "arguments = ['x', 1]",
            "3:19: arguments takes a string, not a whole number; put it in quotes",
        ),
        (
            "arguments = [\"a\\u0000\"]",
            "3:14: arguments holds a NUL character; no program could be given it: take it out",
        ),
        (
            "environment = ['A=1']",
            "3:15: environment takes a table, not a list; write environment = { NAME = \"value\" }",
        ),
        ("environment.A = 1", "3:17: A takes a string, not a whole number; put it in quotes"),
        (
            "environment.\"A=\" = '1'",
            "3:13: \"A=\" cannot name a variable; use letters, digits and _",
        ),
        ("environment.IPC_SERVICE = 'b'", "3:13: ipcd itself sets IPC_SERVICE; take it out"),
        ("environment.IPC_KEY_FILE = 'b'", "3:13: ipcd itself sets IPC_KEY_FILE; take it out"),
        (
            "user = 'nobody-by-this-name'",
            "3:8: there is no user \"nobody-by-this-name\"; see `getent passwd` for those that \
             there are",
        ),
        (
            "cpus = 'all'",
            "3:8: cpus: \"all\" is not a list of CPUs; write numbers and ranges, \
                           like \"0-3,7\"",
        ),
        ("cpus = []", "3:8: cpus lists no CPU; write some, or leave it out"),
        ("cpus = [1024]", "3:9: cpus is 1024; it takes 0 to 1023"),
        ("numa_node = 2000", "3:13: numa_node is 2000; it takes 0 to 1023"),
    ]);
}

#[test]
fn readiness_and_restarts() {
    expect_in_service(&[
        (
            "restart = 'Permanent'",
            "3:11: restart cannot be \"Permanent\"; did you mean \
                                    \"permanent\"?",
        ),
        (
            "restart = 'on-failure'",
            "3:11: restart cannot be \"on-failure\"; it can be permanent, transient, temporary",
        ),
        ("readiness = 'answer'", "3:13: readiness cannot be \"answer\"; did you mean \"answers\"?"),
        (
            "readiness = 5",
            "3:13: readiness takes a table, not a whole number; write readiness = { ... }",
        ),
        (
            "readiness.within = 5",
            "3:20: within takes a duration, not a whole number; give it a unit: \"5s\" or \"5ms\"",
        ),
        ("readiness.after = '5s'", "3:11: unknown key \"after\"; readiness takes when, within"),
        (
            "readiness = 'exits'\nrestart = 'permanent'",
            "4:1: a service that is ready when it exits would be restarted for ever; use restart \
             = \"transient\", or another readiness",
        ),
        (
            "readiness = 'exits'\nwatchdog = true",
            "4:1: a service that is ready when it exits answers no watchdog; take the watchdog \
             out, or use another readiness",
        ),
        ("backoff.factor = 0.5", "3:18: factor is 0.5; it takes 1 to 1000"),
        (
            "backoff.factor = 'two'",
            "3:18: factor takes a number, not a string; write digits \
                                     without quotes",
        ),
        ("backoff.jitter = 1.1", "3:18: jitter is 1.1; it takes 0 to 1"),
        ("backoff.jitter = nan", "3:18: jitter is nan; it takes 0 to 1"),
        (
            "backoff = { first = '2s', most = '1s' }",
            "3:11: backoff: the longest, 1s, is shorter than the first, 2s; make most at least as \
             long as first",
        ),
        (
            "watchdog.interval = '0s'",
            "3:21: interval: \"0s\" is no time at all; write a longer one",
        ),
        ("watchdog.failures = 0", "3:21: failures is 0; it takes 1 to 1000"),
        (
            "stop_within = '5 parsecs'",
            "3:15: stop_within: \"5 parsecs\" is not a duration; write a number and ms, s, min or \
             h, like \"250ms\" or \"5s\"",
        ),
        (
            "stop_within = '400d'",
            "3:15: stop_within: \"400d\" is longer than 365 days; write a number and ms, s, min \
             or h, like \"250ms\" or \"5s\"",
        ),
    ]);
}

#[test]
fn limits_and_sandboxes() {
    expect_in_service(&[
        ("limits.open_files = 3", "3:21: open_files is 3; it takes 16 to 4294967295"),
        (
            "limits.memory = '64M'",
            "3:17: memory: \"64M\" is not a size; write a number and B, KiB, MiB, GiB or TiB, \
             like \"64MiB\"",
        ),
        ("limits.memory = '1B'", "3:17: memory is \"1B\"; it takes 1048576 bytes or more"),
        ("limits.memory = 1", "3:17: memory is 1; it takes 1048576 or more"),
        ("limits.cpu_percent = 0", "3:22: cpu_percent is 0; it takes 1 to 102400"),
        ("quota.half_open = 0", "3:19: half_open is 0; it takes 1 to 4294967295"),
        (
            "quota.names = '1'",
            "3:15: names takes a whole number, not a string; write digits \
                               without quotes",
        ),
        ("log.format = 'xml'", "3:14: format cannot be \"xml\"; it can be text, json"),
        ("log.rotate_at = '10B'", "3:17: rotate_at is \"10B\"; it takes 1024 bytes or more"),
        ("sandbox.connect_tcp = [0]", "3:24: connect_tcp is 0; it takes 1 to 65535"),
        (
            "sandbox.system_calls = ['openat', 'opent']",
            "3:35: there is no system call \"opent\"; write it as strace shows it; `man 2 \
             syscalls` lists them",
        ),
        (
            "sandbox.system_calls = ['\"']",
            "3:25: there is no system call \"\\\"\"; write it as strace shows it; `man 2 \
             syscalls` lists them",
        ),
    ]);
}

#[test]
fn services_among_each_other() {
    let b = "[service.b]\nexecutable = 'b'\n";
    let both = |text: &str| format!("{A}{text}\n{b}");
    expect_in_service(&[
        ("provides = ['x', 'x']", "3:18: a provides \"x\" twice; take one out"),
        (
            "provides = [\"x\\n\"]",
            "3:13: \"x\\n\" cannot be served: it contains control characters; choose another name",
        ),
        (
            "provides = ['x.*']",
            "3:13: \"x.*\" ends in *, which rules take for a prefix; choose another name",
        ),
        (
            "depends_on = ['a']",
            "3:15: dependencies run in a circle: a -> a; none of them could start: take one out",
        ),
    ]);
    expect(&[
        (
            &both("provides = ['b']"),
            &["4:10: both a and b provide \"b\"; let one have it; replicas = N makes more \
                 processes \
             of one service"],
        ),
        (&both("depends_on = ['b', 'b']"), &["3:20: a depends on b twice; take one out"]),
        (
            &both("depends_on = ['B']"),
            &["3:15: a depends on \"B\", which is not here; did you mean \"b\"?"],
        ),
    ]);
    let circle = "service.a = { executable = 'x', depends_on = ['b'] }\n\
                  service.b = { executable = 'x', depends_on = ['c'] }\n\
                  service.c = { executable = 'x', depends_on = ['a', 'd'] }\n\
                  service.d = { executable = 'x', depends_on = ['d'] }\n\
                  service.e = { executable = 'x', depends_on = ['a'] }\n";
    expect(&[(
        circle,
        &[
            "1:47: dependencies run in a circle: a -> b -> c -> a; none of them could start: \
             take one \
         out",
            "4:47: dependencies run in a circle: d -> d; none of them could start: take one out",
        ],
    )]);
}

#[test]
fn groups() {
    let b = "[service.b]\nexecutable = 'b'\n";
    let with = |text: &str| format!("{A}{b}[group.g]\n{text}");
    expect(&[
        (
            &with("members = ['a', 'c']"),
            &["6:17: g has the member \"c\", which is not here; services are a, b"],
        ),
        (
            &with("members = ['a', 'a']"),
            &["6:17: a is twice in the group g; leave it in one place"],
        ),
        (
            &with("members = ['a']\n[group.h]\nmembers = ['b', 'a']"),
            &["8:17: a is in the groups g and h; leave it in one place"],
        ),
        (
            &with("members = ['a']\n[group.b]\nmembers = ['b']\n[group.a]\nmembers = ['b']"),
            &[
                "9:8: the group a is called like the service a; rename it, or make the service a \
             member",
                "10:12: b is in the groups b and a; leave it in one place",
            ],
        ),
        (
            &with("members = ['a']\nstrategy = 'one-for-all'"),
            &["7:12: strategy cannot be \"one-for-all\"; did you mean \"one_for_all\"?"],
        ),
        (
            &with("members = ['a']\nintensity = { restarts = -1, within = '1m' }"),
            &[
                "7:26: restarts is -1; it takes 0 to 1000",
                "7:39: within: \"1m\" is not a duration; write a number and ms, s, min or h, like \
             \"250ms\" or \"5s\"",
            ],
        ),
    ]);
}

#[test]
fn rules() {
    let with = |text: &str| format!("[[rule]]\n{text}");
    expect(&[
        (
            &with(""),
            &[
                "1:1: the rule has no from; write from = \"service:NAME\", or from = \"any\"",
                "1:1: the rule has no to; write to = \"name:NAME\", or to = \"any\"",
                "1:1: the rule must either allow or deny something; write one of allow = [...] and \
             deny = [...]",
            ],
        ),
        (
            &with("from = 'any'\nto = 'any'\nallow = 'all'\ndeny = 'all'"),
            &["1:1: the rule must either allow or deny something; write one of allow = [...] and \
             deny = [...]"],
        ),
        (
            &with("from = 'api'\nto = 'chain'\nallow = []"),
            &[
                "2:8: \"api\" is nobody; write \"any\", \"service:NAME\", \"user:NAME\" or \
             \"executable:/PATH\"",
                "3:6: \"chain\" is nothing to have rights on; write \"any\", \"name:NAME\", \
             \"name:PREFIX*\" or \"runtime\"",
                "4:9: allow lists no operation; write operations, or \"all\"",
            ],
        ),
        (
            &with("from = 'executable:bin/x'\nto = 'name:a*b'\nallow = 'all'"),
            &[
                "2:8: \"executable:bin/x\" is nobody; write \"any\", \"service:NAME\", \
                 \"user:NAME\" \
             or \"executable:/PATH\"",
                "3:6: \"a*b\" has a * that is not at its end; write a prefix and one * after it, \
                 or a \
             whole name",
            ],
        ),
        (
            &with("from = 'user:nobody-of-them'\nto = 'name:'\nallow = ['all', 'x']"),
            &[
                "2:8: there is no user \"nobody-of-them\"; see `getent passwd` for those that \
                 there \
             are",
                "3:6: nobody serves \"\": it is empty; give 1 to 255 bytes; write a name that \
                 can be \
             served",
                "4:17: unknown operation \"x\"; operations are call, send, publish, subscribe, \
             map_region, admin, all",
            ],
        ),
        (
            &with("from = 'any'\nto = 'runtime'\nallow = ['call', 'admin']"),
            &["4:1: the runtime itself is only administered; write [\"admin\"], or make it a \
                 rule \
             on a name"],
        ),
        (
            &with("from = 'service:b'\nto = 'any'\nallow = 'call'\nwhen = 1"),
            &[
                "2:8: the rule is from \"b\", which is not here; services are nothing",
                "5:1: unknown key \"when\"; [[rule]] takes from, to, allow, deny",
            ],
        ),
    ]);
}

#[test]
fn what_is_allowed_and_yet_looks_wrong_is_a_warning() {
    let warnings = |text: &str| said(&node(text).warnings);
    let rule = |rule: &str| {
        let (from, rest) = rule.split_once(" > ").expect("from > to");
        let (to, what) = rest.split_once(" : ").expect("to : what");
        format!("[[rule]]\nfrom = '{from}'\nto = '{to}'\nallow = [{what}]\n")
    };
    let rules = |list: &[&str]| -> Vec<String> {
        warnings(&format!("{A}{}", list.iter().map(|it| rule(it)).collect::<String>()))
    };
    let never = |line: usize, what: &str| {
        format!("{line}:1: {what}; the first that matches counts: move it up, or out")
    };
    assert_eq!(
        rules(&["any > name:x.* : 'all'", "service:a > name:x.y : 'call', 'send'"]),
        [never(7, "rule 2 never decides: rule 1 did")]
    );
    assert_eq!(
        rules(&[
            "any > name:x* : 'call'",
            "user:7 > any : 'send'",
            "user:7 > name:xy* : 'call', 'send'"
        ]),
        [never(11, "rule 3 never decides: rules 1, 2 did")]
    );
    // Each of these has something left to decide.
    for two in [
        ["any > name:x : 'call'", "any > name:x : 'call', 'send'"],
        ["service:a > any : 'all'", "any > any : 'all'"],
        ["user:7 > any : 'all'", "user:8 > any : 'all'"],
        ["any > name:xy* : 'all'", "any > name:x* : 'all'"],
        ["any > name:x : 'all'", "any > name:x* : 'all'"],
        ["any > name:x : 'all'", "any > name:xy : 'all'"],
        ["any > any : 'all'", "any > runtime : 'admin'"],
    ] {
        assert_eq!(rules(&two), Vec::<String>::new(), "{two:?}");
    }
    let group = |members: &str, strategy: &str| {
        let b = "depends_on = ['b']\n[service.b]\nexecutable = 'b'\n";
        warnings(&format!("{A}{b}[group.g]\nmembers = {members}\nstrategy = '{strategy}'"))
    };
    assert_eq!(
        group("['a', 'b']", "rest_for_one"),
        ["7:12: a depends on b, which comes after it; rest_for_one does not restart it with b: \
             put b first"]
    );
    assert_eq!(group("['b', 'a']", "rest_for_one"), Vec::<String>::new());
    assert_eq!(group("['a', 'b']", "one_for_all"), Vec::<String>::new());
    let mute = |more: &str| warnings(&format!("{A}provides = []\n{more}"));
    let never = "3:1: a service that provides nothing answers nobody: it is never ready; write \
                 readiness = \"runs\" or \"exits\", or name what it serves";
    let killed = "3:1: a service that provides nothing answers no watchdog: it is killed; take the \
                  watchdog out, or name what it serves";
    assert_eq!(mute(""), [never]);
    assert_eq!(mute("watchdog = true"), [never, killed]);
    assert_eq!(mute("readiness = 'runs'\nwatchdog = true"), [killed]);
    assert_eq!(mute("readiness = 'runs'\nwatchdog = false"), Vec::<String>::new());
    assert_eq!(mute("readiness = 'exits'"), Vec::<String>::new());
}

#[test]
fn the_name_of_the_file_is_as_it_was_given() {
    assert_eq!(wrong("x = 1")[0].file, FILE);
}

#[test]
fn a_failover_is_of_a_name_and_its_order_of_those_who_provide_it() {
    expect(&[
        (
            "[failover.x]\nstrategy = 'hot'\nhealth_check = { interval = '2min', tries = 1 }",
            &[
                "2:12: strategy cannot be \"hot\"; it can be hot_standby, priority, round_robin, \
                 least_loaded, manual",
                "3:29: interval is 120000ms; it takes 1ms to 60000ms",
                "3:37: unknown key \"tries\"; health_check takes interval, timeout, \
                 threshold, busy",
            ],
        ),
        (
            "[service.a]\nexecutable = 'a'\nprovides = ['x']\n[service.b]\nexecutable = 'b'\n\
             [failover.x]\norder = ['b', 'a', 'a']",
            &[
                "7:10: \"b\" does not provide \"x\"; services that do are a",
                "7:20: \"a\" is in the order twice; leave one of them out",
            ],
        ),
        (
            "[failover.x]\norder = ['b']",
            &["2:10: \"b\" does not provide \"x\"; no service does: processes that are not \
               supervised stand behind each other as they come"],
        ),
        (
            "[failover.\"\"]",
            &["1:11: \"\" cannot be served: it is empty; give 1 to 255 bytes; write the name \
               of a service as its callers know it"],
        ),
    ]);
}

#[test]
fn topics_have_one_name_and_one_number_each() {
    expect(&[
        ("[[topic]]\nid = 7", &["1:1: the topic has no name; write name = \"NAME\""]),
        (
            "[[topic]]\nname = 'a'\nid = 7\n[[topic]]\nname = 'b'\nid = 7",
            &["4:1: the topics \"b\" and \"a\" are both number 7; give one of them another id"],
        ),
        (
            "[[topic]]\nname = 'a'\n[[topic]]\nname = 'a'",
            &["3:1: the topic \"a\" is here twice; give one of them another id"],
        ),
        (
            "[[topic]]\nname = 'event/3'",
            &["2:8: \"event/3\" is how a topic without a name is called; choose another name, \
                 and write id = NUMBER"],
        ),
        (
            "[[topic]]\nname = 'a'\nevent_bus_size = 1\nmode = 'fast'",
            &[
                "3:18: event_bus_size is 1; it takes 64 to 4194304",
                "4:8: mode cannot be \"fast\"; it can be lossy, reliable",
            ],
        ),
    ]);
}
