//! Holds the places that a stream tells against its cursors and the model.

use std::collections::HashMap;

use sessiond::{storage, subject::Filter};

use super::{
    model::{Model, Place},
    told::{Message, Told},
};

/// How far a stream says it has come, by partition.
#[derive(Default)]
pub(crate) struct Reached(HashMap<u32, u64>);

impl Reached {
    /// Returns how the places of the next message are wrong, if they are.
    pub(crate) fn see(&mut self, message: &Message, model: &Model, filter: &Filter) -> Option<String> {
        let Message { told, cursor, places, last } = message;
        if !filter.has_placements() {
            let has_any = !places.is_empty() || last.is_some();
            return has_any.then(|| format!("a stream without placements is told places: {message:?}"));
        }
        if let Told::Reset(_) = told {
            // It lost its place.
            self.0.clear();
        }
        let is_complete = (0..).zip(places).all(|(partition, place)| place.partition == partition)
            && places.len() == model.ends().len();
        match told {
            Told::Subscribed | Told::Synced(_) | Told::Heartbeat if !is_complete => {
                return Some(format!("{told:?} has the places {places:?}"));
            }
            Told::Events(_) if last.is_none() => return Some(format!("{told:?} has no place")),
            _ => {}
        }
        if let Some(Place::After(positions)) = cursor.as_ref().map(|cursor| model.place(cursor))
            && !places.is_empty()
            && !places.iter().map(|place| place.position.0).eq(positions.iter().copied())
        {
            return Some(format!("{told:?} is at {places:?}, and its cursor at {positions:?}"));
        }
        let is_new = |place: &storage::Place| self.0.get(&place.partition).is_none_or(|at| place.position.0 > *at);
        if let (Told::Events(events), Some(place)) = (told, last)
            && let Some(event) = events.last()
            && (!is_new(place) || model.change_at(*place).is_none_or(|change| change.session != event.session))
        {
            return Some(format!("{event:?} is said to be at {place:?}, after {:?}", self.0));
        }
        for place in last.iter().chain(places) {
            let at = self.0.entry(place.partition).or_default();
            if place.position.0 < *at {
                return Some(format!("{told:?} is at {place:?}, and the stream was at {at}"));
            }
            *at = place.position.0;
        }
        None
    }
}
