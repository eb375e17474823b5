# Where things go: the program and its plug-in side by side in lib, so that it finds it, and a link to it in bin.
PREFIX     ?= /usr/local
SYSCONFDIR ?= $(if $(filter /usr,$(PREFIX)),/etc,$(PREFIX)/etc)
DESTDIR    ?=
INSTALLED   = bin/moebius lib/moebius share/man/man1/moebius.1 share/doc/moebius share/bash-completion/completions/moebius \
              lib/systemd/system/moebius.service

.PHONY: install install-files uninstall deb
install: $(BUILD)/moebius $(PLUGIN)
	@+$(MAKE) --no-print-directory install-files

# What is built, as it is.
install-files:
	install -d $(addprefix $(DESTDIR)$(PREFIX)/,bin lib/moebius) $(DESTDIR)$(SYSCONFDIR)/moebius
	install -s $(BUILD)/moebius $(PLUGIN) $(DESTDIR)$(PREFIX)/lib/moebius
	ln -sfn ../lib/moebius/moebius $(DESTDIR)$(PREFIX)/bin/moebius
	packaging/man.sh $(BUILD)/moebius >$(BUILD)/moebius.1
	install -Dm644 $(BUILD)/moebius.1 $(DESTDIR)$(PREFIX)/share/man/man1/moebius.1
	install -Dm644 LICENSE $(DESTDIR)$(PREFIX)/share/doc/moebius/copyright
	install -Dm644 packaging/moebius.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/moebius
	sed 's#@PREFIX@#$(PREFIX)#; s#@SYSCONFDIR@#$(SYSCONFDIR)#' packaging/moebius.service >$(BUILD)/moebius.service
	install -Dm644 $(BUILD)/moebius.service $(DESTDIR)$(PREFIX)/lib/systemd/system/moebius.service
	test -e $(DESTDIR)$(SYSCONFDIR)/moebius/moebius.conf || \
		install -m600 packaging/moebius.conf $(DESTDIR)$(SYSCONFDIR)/moebius/moebius.conf

# The settings stay.
uninstall:
	rm -rf $(addprefix $(DESTDIR)$(PREFIX)/,$(INSTALLED))

deb: $(BUILD)/moebius $(PLUGIN)
	@packaging/deb.sh $(BUILD) $(VERSION)
