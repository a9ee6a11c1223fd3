#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "registry.h"

// A connection of a client. `end` is called once the client must be disconnected, because its session has moved to
// another gateway or was destroyed.
struct Connection {
  int64_t session;
  std::function<void()> end;
  std::chrono::steady_clock::time_point opened = std::chrono::steady_clock::now();
  // The lease the session was registered under for this connection, or 0.
  uint64_t lease = 0;
  // The lease that the session may be taken from, decided by the first lookup. A retry must not take it from anyone
  // else.
  std::optional<uint64_t> only_from;
  // Whether the session is held by another gateway.
  bool is_refused = false;
  // Notified when the connection is registered or refused.
  std::condition_variable settled;
};

using ConnectionPtr = std::shared_ptr<Connection>;

// Keeps the sessions of its connections registered.
//
// Everything that happens only marks its session dirty. One loop looks dirty sessions up and makes all calls about
// sessions, one after the other. So no two calls about a session can overtake each other.
class Gateway {
 public:
  // Throws if the registry grants no lease.
  Gateway(Registry& registry, std::string owner);

  // Registers a session. Returns null if the session is held by another gateway or cannot be registered in time.
  ConnectionPtr connect(int64_t session, std::function<void()> end);
  // Ends a connection. If it was the last one of its session, the session is destroyed. `end` is not called any more.
  void close(const ConnectionPtr& connection);
  // Lets the sessions linger, so that the clients can move to other gateways and no observer sees them disappear.
  void stop();

 private:
  // The connections of the sessions to create, by the lease that each session may be taken from.
  using Claims = std::map<uint64_t, std::map<int64_t, std::vector<ConnectionPtr>>>;
  // The sessions to destroy, by their lease.
  using Releases = std::map<uint64_t, std::vector<int64_t>>;

  // lease.cc
  grpc::Status grant();
  void hear(const pb::SubscribeResponse& message);
  void keep(std::stop_token stop);
  grpc::Status keep_once();
  uint64_t current_lease();

  // loop.cc
  void loop(std::stop_token stop);
  std::pair<std::vector<int64_t>, uint64_t> take(std::stop_token stop);
  grpc::Status round(const std::vector<int64_t>& sessions, uint64_t lease);
  bool has_vanished(const std::vector<int64_t>& sessions, const pb::BatchLookupSessionsResponse& found, uint64_t lease);
  std::pair<Claims, Releases> decide(const std::vector<int64_t>& sessions,
                                     const pb::BatchLookupSessionsResponse& found, uint64_t lease);
  void settle(const std::vector<ConnectionPtr>& connections, bool is_mine, uint64_t lease);

  void touch(int64_t session);
  void touch_all();
  // The caller holds the mutex.
  std::set<ConnectionPtr> connections_of(int64_t session) const;
  void forget(const ConnectionPtr& connection);
  void set_registered(Connection& connection, uint64_t lease);

  Registry& registry_;
  const std::string owner_;
  std::mutex mutex_;
  // Notified when there are dirty sessions, or doubt about the lease.
  std::condition_variable_any changed_;
  uint64_t lease_ = 0;
  // All leases of this gateway, also those that linger.
  std::set<uint64_t> leases_;
  std::map<int64_t, std::set<ConnectionPtr>> connections_;
  std::set<int64_t> dirty_;
  bool is_lease_in_doubt_ = false;
  std::jthread follower_, keeper_, looper_;
};
