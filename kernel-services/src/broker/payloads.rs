//! Who may see payloads of traced requests: an operator, where the node file says so, on record.

use std::borrow::Cow;

use ipc::{ServiceId, Status, control::Reply};

use super::{Broker, Effect, Token, Turn};
use crate::{
    notes::{Kind, Note},
    security::Policy,
};

/// Why they are not shown, on record.
const NOT_LISTED: &str = "the node file does not list it in monitor.payloads";

impl Broker {
    /// Has an instance show payloads, and with it all others of which they may be shown: what a
    /// traced request leads to goes on there. With no bytes it ends for all of them.
    pub(super) fn show_payloads(
        &self,
        from: Token,
        instance: ServiceId,
        bytes: u32,
        for_ms: u32,
        turn: &mut Turn,
    ) -> Reply {
        let Some(session) = self.sessions.get(&from).filter(|_| self.is_operator(from)) else {
            return Reply::Refused(Status::ACCESS);
        };
        let named = self.registry.instance(instance).and(self.registry.name_behind(instance));
        let Some(name) = named else { return Reply::Refused(Status::NOT_FOUND) };
        let may = self.policy.shows_payloads(name);
        let mut note = Note::new(Kind::Admin, session.who.to_string());
        note.object = format!("name {name}");
        note.operation = Cow::Borrowed("payloads");
        note.verdict = Some(may);
        if !may {
            note.kind = Kind::Denial;
            NOT_LISTED.clone_into(&mut note.because);
            turn.note(note);
            return Reply::Refused(Status::ACCESS);
        }
        let listed = self.registry.all().filter(|(_, _, name)| self.policy.shows_payloads(name));
        let mut others = Vec::new();
        for (instance, it, other) in listed {
            let Some(&to) = self.tokens.get(&it.node) else { continue };
            if other != name && !others.contains(&&**other) {
                others.push(&**other);
            }
            let reply = Reply::Payloads { instance, bytes, for_ms };
            turn.out.push(Effect::Send { to, sequence: 0, reply });
        }
        // That it ends is part of what is on record.
        if bytes > 0 {
            let also = if others.is_empty() { "" } else { "; also of " };
            let others = others.join(", ");
            note.because = format!("{bytes} bytes each, for {for_ms} ms{also}{others}");
            turn.note(note);
        }
        Reply::Done
    }

    /// Ends it for those of whom another node file does not let payloads be shown.
    pub(super) fn hide_payloads(&self, before: &Policy, turn: &mut Turn) {
        let hidden = self.registry.all().filter(|(_, _, name)| {
            before.shows_payloads(name) && !self.policy.shows_payloads(name)
        });
        for (instance, it, _) in hidden {
            let Some(&to) = self.tokens.get(&it.node) else { continue };
            let reply = Reply::Payloads { instance, bytes: 0, for_ms: 0 };
            turn.out.push(Effect::Send { to, sequence: 0, reply });
        }
    }
}
