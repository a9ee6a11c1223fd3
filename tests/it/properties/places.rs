//! Checks the places in a stream against its cursors and the model.

use std::collections::HashMap;

use sessiond::{storage, subject::Filter};

use super::{
    message::{Content, Message},
    model::{Model, Place},
};

/// How far a stream says it has come in each partition.
#[derive(Default)]
pub(crate) struct Reached(HashMap<u32, u64>);

impl Reached {
    /// Returns what is wrong with the places of the next message, if anything is.
    pub(crate) fn see(&mut self, message: &Message, model: &Model, filter: &Filter) -> Option<String> {
        let Message { content, cursor, places, last } = message;
        if !filter.has_placements() {
            let has_any = !places.is_empty() || last.is_some();
            return has_any.then(|| format!("a stream without placements has places: {message:?}"));
        }
        if let Content::Reset(_) = content {
            // The stream lost its place.
            self.0.clear();
        }
        let is_complete = (0..).zip(places).all(|(partition, place)| place.partition == partition)
            && places.len() == model.ends().len();
        match content {
            Content::Subscribed | Content::Synced(_) | Content::Heartbeat if !is_complete => {
                return Some(format!("{content:?} has the places {places:?}"));
            }
            Content::Events(_) if last.is_none() => return Some(format!("{content:?} has no place")),
            _ => {}
        }
        if let Some(Place::After(positions)) = cursor.as_ref().map(|cursor| model.place(cursor))
            && !places.is_empty()
            && !places.iter().map(|place| place.position.0).eq(positions.iter().copied())
        {
            return Some(format!("{content:?} is at {places:?}, but its cursor is at {positions:?}"));
        }
        let is_new = |place: &storage::Place| self.0.get(&place.partition).is_none_or(|at| place.position.0 > *at);
        if let (Content::Events(events), Some(place)) = (content, last)
            && let Some(event) = events.last()
            && (!is_new(place) || model.change_at(*place).is_none_or(|change| change.session != event.session))
        {
            return Some(format!("{event:?} is reported at {place:?}, after {:?}", self.0));
        }
        for place in last.iter().chain(places) {
            let at = self.0.entry(place.partition).or_default();
            if place.position.0 < *at {
                return Some(format!("{content:?} is at {place:?}, but the stream was already at {at}"));
            }
            *at = place.position.0;
        }
        None
    }
}
