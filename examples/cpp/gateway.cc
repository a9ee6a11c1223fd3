#include "gateway.h"

#include <stdexcept>

Gateway::Gateway(Registry& registry, std::string owner) : registry_(registry), owner_(std::move(owner)) {
  if (auto status = grant(); !status.ok()) {
    throw std::runtime_error(status.error_message());
  }
  keeper_ = std::jthread([this](std::stop_token stop) { keep(stop); });
  looper_ = std::jthread([this](std::stop_token stop) { loop(stop); });
}

ConnectionPtr Gateway::connect(int64_t session, std::function<void()> end) {
  auto connection = std::make_shared<Connection>();
  connection->session = session;
  connection->end = std::move(end);
  {
    std::unique_lock lock(mutex_);
    connections_[session].insert(connection);
    dirty_.insert(session);
    changed_.notify_all();
    connection->settled.wait_for(lock, kTimeout, [&] { return connection->lease != 0 || connection->is_refused; });
    if (connection->lease != 0) {
      return connection;
    }
  }
  close(connection);
  return nullptr;
}

void Gateway::close(const ConnectionPtr& connection) {
  std::lock_guard lock(mutex_);
  forget(connection);
  dirty_.insert(connection->session);
  changed_.notify_all();
}

void Gateway::stop() {
  looper_.request_stop();
  keeper_.request_stop();
  pb::RevokeLeaseRequest request;
  request.set_lease_id(current_lease());
  request.mutable_linger()->set_seconds(30);
  pb::RevokeLeaseResponse revoked;
  call(registry_.leases, &pb::LeaseService::Stub::RevokeLease, request, &revoked);
}

void Gateway::touch(int64_t session) {
  std::lock_guard lock(mutex_);
  dirty_.insert(session);
  changed_.notify_all();
}

void Gateway::touch_all() {
  std::lock_guard lock(mutex_);
  for (const auto& [session, connections] : connections_) {
    dirty_.insert(session);
  }
  changed_.notify_all();
}

std::set<ConnectionPtr> Gateway::connections_of(int64_t session) const {
  auto found = connections_.find(session);
  return found == connections_.end() ? std::set<ConnectionPtr>() : found->second;
}

void Gateway::forget(const ConnectionPtr& connection) {
  auto found = connections_.find(connection->session);
  if (found != connections_.end() && found->second.erase(connection) && found->second.empty()) {
    connections_.erase(found);
  }
}

void Gateway::set_registered(Connection& connection, uint64_t lease) {
  connection.lease = lease;
  connection.settled.notify_all();
}
