use proptest::prelude::*;

use super::*;

const US: u32 = 1000;

fn service(name: &str) -> Who {
    Who::Supervised { service: name.to_owned(), uid: US, pid: 1 }
}

fn user(uid: u32) -> Who {
    Who::Unsupervised { uid, pid: 2, executable: Some("/bin/tool".into()) }
}

fn name(text: &str, served_by: u32) -> What<'_> {
    What::Name { text, served_by: Some(served_by) }
}

fn rule(subject: Subject, object: Object, operations: &[Operation], allow: bool) -> Rule {
    let operations = operations.iter().fold(0, |mask, it| mask | it.bit());
    Rule { subject, object, operations, allow }
}

fn policy(rules: Vec<Rule>) -> Policy {
    let lines = (0..rules.len() as u32).map(|index| 10 + index).collect();
    let provides = ["api", "store"].map(|it| (it.to_owned(), vec![it.to_owned()])).to_vec();
    Policy::new(Terms { uid: US, rules, lines, provides, ..Terms::default() })
}

#[test]
fn without_rules_the_defaults_decide() {
    let policy = policy(Vec::new());
    let (call, admin) = (Operation::Call, Operation::Admin);
    let unserved = What::Name { text: "tool", served_by: None };
    for (who, what, operation, default) in [
        (service("api"), name("api", US), call, Fallback::Own),
        (service("api"), name("api", US), admin, Fallback::Own),
        (service("api"), name("store", US), call, Fallback::Supervised),
        (service("api"), name("tool", US), call, Fallback::Supervised),
        (service("api"), What::Runtime, admin, Fallback::Supervised),
        (user(US), name("tool", US), call, Fallback::SameUser),
        (user(7), name("tool", 7), Operation::MapRegion, Fallback::SameUser),
        (user(7), name("tool", US), call, Fallback::OtherUser),
        (user(0), name("tool", US), call, Fallback::OtherUser),
        (user(US), unserved, call, Fallback::Unserved),
        (user(US), name("store", US), call, Fallback::Outsider),
        (user(US), name("store", US), admin, Fallback::Operator),
        (user(0), What::Runtime, admin, Fallback::Operator),
        (user(US), What::Runtime, admin, Fallback::Operator),
        (user(7), What::Runtime, admin, Fallback::Runtime),
        (user(7), name("store", US), admin, Fallback::Outsider),
        (user(US), What::Runtime, call, Fallback::Runtime),
    ] {
        let verdict = policy.judge(&who, what, operation);
        assert_eq!(verdict.because, Because::Default(default), "{who} → {what}: {operation}");
        assert_eq!(verdict.allowed, default.allows());
    }
}

#[test]
fn the_first_rule_that_matches_decides() {
    let (call, send) = (Operation::Call, Operation::Send);
    let api = || Subject::Service("api".to_owned());
    let policy = policy(vec![
        rule(api(), Object::Name("store".to_owned()), &[send], false),
        rule(api(), Object::Name("sto*".to_owned()), &[call, send], true),
        rule(Subject::Any, Object::Any, &[call], false),
        rule(Subject::User(7), Object::Name("store".to_owned()), &[call, send], true),
        rule(Subject::Any, Object::Runtime, &[Operation::Admin], false),
    ]);
    for (who, what, operation, allowed, index) in [
        (service("api"), name("store", US), call, true, 1),
        (service("api"), name("store", US), send, false, 0),
        (service("api"), name("stock", US), send, true, 1),
        (service("api"), name("api", US), call, false, 2),
        (service("store"), name("store", US), call, false, 2),
        (user(7), name("store", US), call, false, 2),
        (user(7), name("store", US), send, true, 3),
        (user(US), What::Runtime, Operation::Admin, false, 4),
    ] {
        let verdict = policy.judge(&who, what, operation);
        let expected = Verdict { allowed, because: Because::Rule(index) };
        assert_eq!(verdict, expected, "{who} → {what}: {operation}");
    }
    let granted = policy.permitted(&service("api"), name("store", US));
    assert_eq!(granted, call.bit());
}

#[test]
fn who_cannot_be_identified_is_whom_a_denial_means_and_no_grant() {
    let executable = || Subject::Executable("/bin/tool".into());
    let unknown = Who::Unsupervised { uid: US, pid: 3, executable: None };
    let to = || Object::Name("store".to_owned());
    let grant = policy(vec![rule(executable(), to(), &[Operation::Call], true)]);
    assert!(grant.judge(&user(US), name("store", US), Operation::Call).allowed);
    assert!(!grant.judge(&unknown, name("store", US), Operation::Call).allowed);
    let denial = policy(vec![
        rule(executable(), to(), &[Operation::Call], false),
        rule(Subject::Any, to(), &[Operation::Call], true),
    ]);
    for who in [user(US), unknown] {
        let verdict = denial.judge(&who, name("store", US), Operation::Call);
        assert_eq!(verdict, Verdict { allowed: false, because: Because::Rule(0) });
    }
    let other = Who::Unsupervised { uid: US, pid: 3, executable: Some("/bin/cat".into()) };
    assert!(denial.judge(&other, name("store", US), Operation::Call).allowed);
}

#[test]
fn a_provided_name_is_its_service_s_alone() {
    let everything = rule(Subject::Any, Object::Any, &Operation::ALL, true);
    let policy = policy(vec![everything]);
    for (who, text, served_by, allowed) in [
        (service("api"), "api", None, true),
        (service("store"), "api", None, false),
        (user(US), "api", None, false),
        (user(0), "api", None, false),
        (service("api"), "free", None, false),
        (user(US), "free", None, true),
        (user(US), "free", Some(US), true),
        (user(US), "free", Some(7), false),
        // Another service's user does not make it that service.
        (service("other"), "store", Some(US), false),
    ] {
        let verdict = policy.registering(&who, text, served_by);
        assert_eq!(verdict.allowed, allowed, "{who} registers {text}: {:?}", verdict.because);
    }
}

#[test]
fn a_reload_closes_what_it_would_not_open() {
    let to_store = || Object::Name("store".to_owned());
    let api = || Subject::Service("api".to_owned());
    let both = [Operation::Call, Operation::Send];
    let before = policy(vec![rule(api(), to_store(), &both, true)]);
    let (api_service, tool) = (service("api"), user(US));
    let open = |policy: &Policy| {
        [(1, &api_service, name("store", US)), (2, &tool, name("tool", US))]
            .map(|(id, who, what)| Open { id, who, what, granted: policy.permitted(who, what) })
    };
    let channels = open(&before);
    assert_eq!(before.revoked(channels), []);
    let narrower = policy(vec![rule(api(), to_store(), &[Operation::Call], true)]);
    let because = Because::Default(Fallback::Supervised);
    let operation = Operation::Send;
    assert_eq!(narrower.revoked(channels), [Revoked { channel: 1, operation, because }]);
    // The other way round nothing is taken away.
    assert_eq!(before.revoked(open(&narrower)), []);
}

#[test]
fn an_explanation_names_the_rule_its_line_and_the_default() {
    let api = || Subject::Service("api".to_owned());
    let policy = policy(vec![rule(
        api(),
        Object::Name("store*".to_owned()),
        &[Operation::Call, Operation::Send],
        true,
    )]);
    let allowed = policy.explain(&service("api"), name("store", US), Operation::Send);
    assert_eq!(
        allowed.to_string(),
        "service api (user 1000, pid 1) → name store (served by user 1000): send is allowed\n  \
         by rule 1, line 10: service:api → name:store*: allow call, send\n  \
         default: denied, since a supervised service may do nothing that no rule allows"
    );
    let denied = policy.explain(&user(7), What::Runtime, Operation::Admin);
    assert_eq!(
        denied.to_string(),
        "user 7 (pid 2, /bin/tool) → the runtime: admin is denied\n  no rule matches\n  \
         default: denied, since the runtime takes administration only, from its own \
         user or root\n  \
         to allow it, add to the node file:\n    [[rule]]\n    from = \"user:7\"\n    \
         to = \"runtime\"\n    allow = [\"admin\"]"
    );
}

#[test]
fn the_hint_of_a_denial_is_a_rule_that_allows_it() {
    for (who, what) in [
        (service("api"), name("store", US)),
        (user(7), name("store", US)),
        (user(7), name("tool", US)),
        (user(7), What::Runtime),
    ] {
        for operation in Operation::ALL {
            let before = policy(Vec::new());
            let hint = before.explain(&who, what, operation).hint.expect("denied");
            let subject = match &who {
                Who::Supervised { service, .. } => Subject::Service(service.clone()),
                Who::Unsupervised { uid, .. } => Subject::User(*uid),
            };
            let object = match what {
                What::Name { text, .. } => Object::Name(text.to_owned()),
                What::Runtime => Object::Runtime,
            };
            let added = rule(subject, object, &[operation], true);
            assert_eq!(hint, added.to_toml());
            assert!(policy(vec![added]).judge(&who, what, operation).allowed);
        }
    }
}

/// What a policy writes down is what the reader of node files takes.
#[cfg(feature = "node")]
#[test]
fn a_rule_is_written_as_the_node_file_has_it() {
    let subjects = [
        Subject::Any,
        Subject::Service("api".to_owned()),
        Subject::User(7),
        Subject::Executable("/bin/tool".into()),
    ];
    let names = ["store", "a b*", "say \"\\\"", "é"].map(|it| Object::Name(it.to_owned()));
    let objects = names.into_iter().chain([Object::Any]);
    let with = |object: Object| {
        let rules = subjects
            .clone()
            .map(|it| rule(it, object.clone(), &[Operation::Call, Operation::Admin], true));
        rules.into_iter().chain([rule(Subject::User(9), object, &[Operation::Send], false)])
    };
    let mut rules: Vec<Rule> = objects.flat_map(with).collect();
    rules.push(rule(Subject::User(7), Object::Runtime, &[Operation::Admin], true));
    let service = "[service.api]\nexecutable = \"/bin/api\"\n";
    let file = rules.iter().fold(service.to_owned(), |file, rule| file + &rule.to_toml());
    let node = crate::node::parse(&file, std::path::Path::new("/etc/node.toml"));
    assert_eq!(node.expect("a good file").rules, rules);
}

#[test]
fn operations_have_the_numbers_and_names_of_the_contract() {
    for (number, operation) in Operation::ALL.into_iter().enumerate() {
        assert_eq!(operation as usize, number);
        assert_eq!(Operation::from_number(number as u32), Some(operation));
        assert_eq!(Operation::from_name(operation.name()), Some(operation));
        assert_eq!(Operation::MASK & operation.bit(), 1 << number);
    }
    assert_eq!(Operation::from_number(6), None);
    assert_eq!(Operation::from_name("CALL"), None);
    assert_eq!(names_of(0b100_001), "call, admin");
    assert_eq!(names_of(0), "nothing");
}

fn any_name() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "ab", "abc", "b", "api", "store"]).prop_map(str::to_owned)
}

fn any_program() -> impl Strategy<Value = PathBuf> {
    prop::sample::select(vec!["/x", "/y"]).prop_map(PathBuf::from)
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let subject = prop_oneof![
        Just(Subject::Any),
        any_name().prop_map(Subject::Service),
        (0..2u32).prop_map(Subject::User),
        any_program().prop_map(Subject::Executable),
    ];
    let object = prop_oneof![
        Just(Object::Any),
        Just(Object::Runtime),
        any_name().prop_map(Object::Name),
        any_name().prop_map(|it| Object::Name(it + "*")),
    ];
    (subject, object, 0..=Operation::MASK, any::<bool>()).prop_map(
        |(subject, object, operations, allow)| Rule { subject, object, operations, allow },
    )
}

fn anybody() -> impl Strategy<Value = Who> {
    prop_oneof![
        any_name().prop_map(|service| Who::Supervised { service, uid: 0, pid: 0 }),
        (0..2u32, prop::option::of(any_program()))
            .prop_map(|(uid, executable)| Who::Unsupervised { uid, pid: 0, executable }),
    ]
}

/// What a rule's subject means, read by itself.
fn is_about(rule: &Rule, who: &Who) -> bool {
    match (&rule.subject, who) {
        (Subject::Any, _) => true,
        (Subject::Service(name), Who::Supervised { service, .. }) => name == service,
        (Subject::User(user), Who::Unsupervised { uid, .. }) => user == uid,
        (Subject::Executable(path), Who::Unsupervised { executable, .. }) => {
            executable.as_ref().map_or(!rule.allow, |it| it == path)
        }
        (Subject::Service(_), Who::Unsupervised { .. })
        | (Subject::User(_) | Subject::Executable(_), Who::Supervised { .. }) => false,
    }
}

proptest! {
    #[test]
    fn the_compiled_form_decides_as_reading_the_rules_in_order(
        rules in prop::collection::vec(any_rule(), 0..24),
        who in anybody(),
        text in prop::option::of(any_name()),
        number in 0..6u32,
    ) {
        let what = text.as_deref().map_or(What::Runtime, |text| name(text, 0));
        let operation = Operation::from_number(number).expect("one of six");
        let read = rules.iter().position(|rule| {
            rule.operations & operation.bit() != 0
                && is_about(rule, &who)
                && concerns(&rule.object, what)
        });
        let allows = read.map(|index| rules[index].allow);
        let verdict = policy(rules).judge(&who, what, operation);
        match read {
            Some(index) => prop_assert_eq!(verdict.because, Because::Rule(index)),
            None => prop_assert!(matches!(verdict.because, Because::Default(_))),
        }
        prop_assert!(allows.is_none_or(|allow| allow == verdict.allowed));
    }
}

#[test]
fn the_first_route_decides_what_is_encrypted_and_otherwise_the_users_do() {
    let route = |subject, object: &str, encrypted| Route {
        subject,
        object: Object::Name(object.to_owned()),
        encrypted,
    };
    let routes = vec![
        route(Subject::User(7), "store", false),
        route(Subject::Any, "st*", true),
        route(Subject::Service("api".to_owned()), "log", false),
    ];
    let policy = Policy::new(Terms { uid: US, routes, ..Terms::default() });
    let user = |uid| Who::Unsupervised { uid, pid: 1, executable: None };
    let api = Who::Supervised { service: "api".to_owned(), uid: 5, pid: 1 };
    let name = |text, uid| What::Name { text, served_by: Some(uid) };
    assert!(!policy.encrypts(&user(7), name("store", 8)), "by the first");
    assert!(policy.encrypts(&user(8), name("store", 8)), "by the second");
    assert!(!policy.encrypts(&api, name("log", 6)), "by the third");
    assert!(policy.encrypts(&api, name("other", 6)), "between two users");
    assert!(!policy.encrypts(&api, name("other", 5)), "within one");
}
