#include "observer.h"

#include <cstdint>
#include <iostream>
#include <unordered_map>

grpc::Status observe(Registry& registry) {
  std::unordered_map<int64_t, uint64_t> held;
  pb::SubscribeRequest request;
  request.set_placements(true);
  return registry.follow({}, request, [&](const pb::SubscribeResponse& message) {
    // A stream that starts without a cursor starts with a snapshot.
    if (message.has_reset() || (message.has_subscribed() && message.cursor().empty())) {
      held.clear();
    }
    for (const auto& session : message.snapshot().sessions()) {
      held[session.session_id()] = session.lease_id();
    }
    if (message.has_synced()) {
      std::cout << "synced " << held.size() << std::endl;
    }
    for (const auto& event : message.events().events()) {
      switch (event.type()) {
        case pb::SESSION_EVENT_TYPE_DESTROYED:
          held.erase(event.session_id());
          std::cout << "destroyed " << event.session_id() << std::endl;
          break;
        case pb::SESSION_EVENT_TYPE_MOVED:
          held[event.session_id()] = event.lease_id();
          std::cout << "moved " << event.session_id() << std::endl;
          break;
        case pb::SESSION_EVENT_TYPE_CREATED:
          held[event.session_id()] = event.lease_id();
          std::cout << "created " << event.session_id() << std::endl;
          break;
        default:
          break;
      }
    }
  });
}
