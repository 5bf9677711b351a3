use ipc::{ServiceId, Status};

use super::{
    super::{Effect, Event, rights::Law},
    *,
};
use crate::{
    notes::{Kind, Note},
    security::{Object, Terms},
};

#[test]
fn payloads_are_shown_of_those_that_the_node_file_lists_and_each_use_is_on_record() {
    let mut broker = with_nodes(1..=4).recorded();
    let [(api, _), (store, _), (chat, _)] = [(2, "api"), (3, "store"), (4, "chat")]
        .map(|(node, name)| register(&mut broker, node, name));
    let ask_for = |instance, bytes| Request::Payloads { instance, bytes, for_ms: 9 };
    let told = |to, instance, bytes, for_ms| Effect::Send {
        to,
        sequence: 0,
        reply: Reply::Payloads { instance, bytes, for_ms },
    };
    let noted = |effects: &[Effect]| -> Vec<(Kind, String, Option<bool>, String)> {
        let notes = effects.iter().filter_map(|effect| match effect {
            Effect::Note(note) => Some(note),
            _ => None,
        });
        let four = |it: &Note| (it.kind, it.object.clone(), it.verdict, it.because.clone());
        notes.map(four).collect()
    };
    let denied = ask(&mut broker, 1, ask_for(api, 64));
    assert_eq!(denied.last(), Some(&refusal(1, 7, Status::ACCESS)));
    let why = "the node file does not list it in monitor.payloads".to_owned();
    assert_eq!(noted(&denied), [(Kind::Denial, "name api".to_owned(), Some(false), why)]);
    let listing = |names: &[&str]| {
        let payloads = names.iter().map(|name| Object::Name((*name).to_owned())).collect();
        Law { terms: Terms { uid: UID, payloads, ..Terms::default() }, ..Law::default() }
    };
    broker.step(Event::Law(Box::new(listing(&["api", "st*"]))), 0);
    let shown = ask(&mut broker, 1, ask_for(api, 64));
    for wanted in [told(2, api, 64, 9), told(3, store, 64, 9)] {
        assert!(shown.contains(&wanted), "{shown:#?}");
    }
    assert!(!shown.contains(&told(4, chat, 64, 9)), "{shown:#?}");
    let why = "64 bytes each, for 9 ms; also of store".to_owned();
    assert_eq!(noted(&shown), [(Kind::Admin, "name api".to_owned(), Some(true), why)]);
    assert_eq!(ask(&mut broker, 1, ask_for(chat, 64)).last(), denied.last());
    let wrong = ask(&mut broker, 1, ask_for(ServiceId::new(9999), 64));
    assert_eq!(wrong, [refusal(1, 7, Status::NOT_FOUND)]);
    // What another file does not list any more is hidden while it is looked at.
    let hidden = broker.step(Event::Law(Box::new(listing(&["api"]))), 0);
    assert!(hidden.contains(&told(3, store, 0, 0)) && !hidden.contains(&told(2, api, 0, 0)));
}
