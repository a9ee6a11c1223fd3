// An observer and a gateway on plain stubs.
//
//   sessiond-cpp observe ADDRESS            prints the sessions and every change
//   sessiond-cpp gateway ADDRESS LISTEN     accepts clients on LISTEN, such as 127.0.0.1:7000
//
// A client of the gateway sends the id of its session as a line and gets the line "connected". Its session exists until
// it disconnects. If its session moves to another gateway or is destroyed, the gateway disconnects it.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cinttypes>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>

#include "gateway.h"
#include "observer.h"

namespace {

// Listens on an IPv4 address and a port. A port of 0 is replaced with the one that the system chose.
int listen_on(std::string& address) {
  const auto colon = address.rfind(':');
  sockaddr_in name{};
  name.sin_family = AF_INET;
  if (colon == std::string::npos || inet_pton(AF_INET, address.substr(0, colon).c_str(), &name.sin_addr) != 1) {
    throw std::runtime_error("not an IPv4 address and a port: " + address);
  }
  name.sin_port = htons(std::stoi(address.substr(colon + 1)));
  socklen_t size = sizeof name;
  const int on = 1;
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(listener, reinterpret_cast<sockaddr*>(&name), size) != 0 || listen(listener, SOMAXCONN) != 0 ||
      getsockname(listener, reinterpret_cast<sockaddr*>(&name), &size) != 0) {
    throw std::system_error(errno, std::generic_category(), address);
  }
  address = address.substr(0, colon + 1) + std::to_string(ntohs(name.sin_port));
  return listener;
}

// Serves one client until it disconnects or its session ends.
void attend(Gateway& gateway, int client) {
  FILE* lines = fdopen(client, "r");
  char line[64];
  int64_t session;
  if (fgets(line, sizeof line, lines) && sscanf(line, "%" SCNd64, &session) == 1) {
    if (auto connection = gateway.connect(session, [client] { shutdown(client, SHUT_RDWR); })) {
      dprintf(client, "connected\n");
      while (fgets(line, sizeof line, lines)) {
      }
      gateway.close(connection);
    }
  }
  fclose(lines);
}

// Accepts clients until SIGINT or SIGTERM, and then lets them move to other gateways.
void serve(const std::string& registry_address, std::string address) {
  // Blocked before any other thread starts, so that only `sigwait` receives these signals.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  const int listener = listen_on(address);
  Registry registry(registry_address);
  Gateway gateway(registry, address);
  std::cout << "listening on " << address << std::endl;
  std::thread([signals, listener] {
    int received;
    sigwait(&signals, &received);
    shutdown(listener, SHUT_RDWR);
  }).detach();
  for (int client; (client = accept(listener, nullptr, nullptr)) >= 0;) {
    std::thread(attend, std::ref(gateway), client).detach();
  }
  gateway.stop();
  // The clients' threads end with the process.
  std::_Exit(EXIT_SUCCESS);
}

}  // namespace

int main(int count, char** arguments) {
  const std::string command = count > 1 ? arguments[1] : "";
  try {
    if (command == "observe" && count == 3) {
      Registry registry(arguments[2]);
      throw std::runtime_error(observe(registry).error_message());
    }
    if (command == "gateway" && count == 4) {
      serve(arguments[2], arguments[3]);
    }
    throw std::runtime_error("usage: sessiond-cpp observe ADDRESS | gateway ADDRESS LISTEN");
  } catch (const std::exception& error) {
    std::cerr << error.what() << std::endl;
    return EXIT_FAILURE;
  }
}
