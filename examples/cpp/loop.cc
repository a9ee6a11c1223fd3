#include "gateway.h"

// The maximum number of sessions in a round.
constexpr size_t kMaxBatch = 4096;
// A client that has waited for longer than this may have gone to another gateway, so its session is not taken from there.
constexpr std::chrono::seconds kFreshness = 1s;

void Gateway::loop(std::stop_token stop) {
  int failures = 0;
  while (true) {
    auto [sessions, lease] = take(stop);
    if (stop.stop_requested()) {
      return;
    }
    const auto status = round(sessions, lease);
    if (status.ok()) {
      failures = 0;
    } else {
      {
        std::lock_guard lock(mutex_);
        is_lease_in_doubt_ |= is_lease_gone(status);
        dirty_.insert(sessions.begin(), sessions.end());
        changed_.notify_all();
      }
      pause(stop, status, failures++);
    }
  }
}

// Waits for dirty sessions. Returns some, which are clean from now on, and the lease to register them under.
std::pair<std::vector<int64_t>, uint64_t> Gateway::take(std::stop_token stop) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, stop, [this] { return !dirty_.empty(); });
  std::vector<int64_t> sessions;
  while (!dirty_.empty() && sessions.size() < kMaxBatch) {
    sessions.push_back(*dirty_.begin());
    dirty_.erase(dirty_.begin());
  }
  return {sessions, lease_};
}

// Makes the registry agree with the open connections of these sessions.
grpc::Status Gateway::round(const std::vector<int64_t>& sessions, uint64_t lease) {
  pb::BatchLookupSessionsRequest lookup;
  lookup.mutable_session_ids()->Add(sessions.begin(), sessions.end());
  pb::BatchLookupSessionsResponse found;
  if (auto status = call(registry_.sessions, &pb::SessionService::Stub::BatchLookupSessions, lookup, &found);
      !status.ok()) {
    return status;
  }
  if (has_vanished(sessions, found, lease)) {
    // Either somebody has destroyed these sessions, or they have ended with the lease.
    if (auto status = keep_once(); !status.ok()) {
      return status;
    }
    if (current_lease() != lease) {
      return {grpc::StatusCode::FAILED_PRECONDITION, "the lease may be gone"};
    }
  }
  auto [claims, releases] = decide(sessions, found, lease);
  for (const auto& [from, released] : releases) {
    pb::BatchDestroySessionsRequest destroy;
    destroy.mutable_session_ids()->Add(released.begin(), released.end());
    destroy.set_lease_id(from);
    pb::BatchDestroySessionsResponse destroyed;
    if (auto status = call(registry_.sessions, &pb::SessionService::Stub::BatchDestroySessions, destroy, &destroyed);
        !status.ok()) {
      return status;
    }
  }
  for (const auto& [only_from, claimed] : claims) {
    pb::BatchCreateSessionsRequest create;
    for (const auto& [session, connections] : claimed) {
      create.add_session_ids(session);
    }
    create.set_lease_id(lease);
    create.set_only_from_lease_id(only_from);
    pb::BatchCreateSessionsResponse created;
    if (auto status = call(registry_.sessions, &pb::SessionService::Stub::BatchCreateSessions, create, &created);
        !status.ok()) {
      return status;
    }
    int index = 0;
    for (const auto& [session, connections] : claimed) {
      settle(connections, created.lease_ids(index++) == lease, lease);
    }
  }
  return grpc::Status::OK;
}

// Returns whether a session that was registered under this lease does not exist.
bool Gateway::has_vanished(const std::vector<int64_t>& sessions, const pb::BatchLookupSessionsResponse& found,
                           uint64_t lease) {
  std::lock_guard lock(mutex_);
  for (size_t i = 0; i < sessions.size(); i++) {
    for (const auto& connection : connections_of(sessions[i])) {
      if (connection->lease == lease && found.lease_ids(i) == 0) {
        return true;
      }
    }
  }
  return false;
}

// Compares the connections with what the registry says. It ends the connections whose client has left, and returns the
// sessions to create and to destroy.
std::pair<Gateway::Claims, Gateway::Releases> Gateway::decide(const std::vector<int64_t>& sessions,
                                                              const pb::BatchLookupSessionsResponse& found,
                                                              uint64_t lease) {
  Claims claims;
  Releases releases;
  std::lock_guard lock(mutex_);
  for (size_t i = 0; i < sessions.size(); i++) {
    const uint64_t holder = found.lease_ids(i);
    const auto connections = connections_of(sessions[i]);
    if (connections.empty() && leases_.count(holder)) {
      releases[holder].push_back(sessions[i]);
    }
    for (const auto& connection : connections) {
      if (holder == lease) {
        set_registered(*connection, lease);
      } else if (connection->lease == lease) {
        forget(connection);
        connection->end();
      } else {
        if (connection->lease != 0) {
          // A session that was registered under an older lease is restored, but not taken from another gateway.
          connection->only_from = 0;
        } else if (!connection->only_from) {
          const auto age = std::chrono::steady_clock::now() - connection->opened;
          connection->only_from = age < kFreshness ? holder : 0;
        }
        claims[*connection->only_from][sessions[i]].push_back(connection);
      }
    }
  }
  return {claims, releases};
}

// Applies the answer to a claim.
void Gateway::settle(const std::vector<ConnectionPtr>& connections, bool is_mine, uint64_t lease) {
  std::lock_guard lock(mutex_);
  for (const auto& connection : connections) {
    if (!connections_of(connection->session).count(connection)) {
      continue;  // It was closed during the call.
    }
    if (is_mine) {
      set_registered(*connection, lease);
    } else {
      forget(connection);
      connection->is_refused = true;
      connection->settled.notify_all();
      connection->end();
    }
  }
}
