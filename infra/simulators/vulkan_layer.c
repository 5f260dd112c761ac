/* A Vulkan layer that lets sapien 2.2 draw with Mesa's software driver.
 *
 * sapien asks its device for VK_KHR_external_semaphore_fd, with which it hands finished frames
 * to CUDA. Mesa's lavapipe has no such extension, and a machine without a GPU has no CUDA to
 * hand anything to: so the layer takes the request out of vkCreateDevice, and the wish for an
 * exportable semaphore out of vkCreateSemaphore. Built by setup-simpler.sh.
 */
#include <stdlib.h>
#include <string.h>
#include <vulkan/vk_layer.h>
#include <vulkan/vulkan.h>

#define EXPORT __attribute__((visibility("default")))

static const char unwanted[] = "VK_KHR_external_semaphore_fd";

/* One process draws with one driver, so one set of its entry points is enough. */
static struct {
    VkInstance instance;
    PFN_vkGetInstanceProcAddr instance_proc;
    PFN_vkGetDeviceProcAddr device_proc;
} below;

static VkResult VKAPI_CALL create_instance(const VkInstanceCreateInfo *info,
                                           const VkAllocationCallbacks *memory,
                                           VkInstance *instance)
{
    VkLayerInstanceCreateInfo *link = (VkLayerInstanceCreateInfo *)info->pNext;
    while (link && (link->sType != VK_STRUCTURE_TYPE_LOADER_INSTANCE_CREATE_INFO ||
                    link->function != VK_LAYER_LINK_INFO))
        link = (VkLayerInstanceCreateInfo *)link->pNext;
    if (!link)
        return VK_ERROR_INITIALIZATION_FAILED;
    below.instance_proc = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
    link->u.pLayerInfo = link->u.pLayerInfo->pNext;

    PFN_vkCreateInstance create =
        (PFN_vkCreateInstance)below.instance_proc(VK_NULL_HANDLE, "vkCreateInstance");
    VkResult result = create(info, memory, instance);
    if (result == VK_SUCCESS)
        below.instance = *instance;
    return result;
}

static VkResult VKAPI_CALL create_device(VkPhysicalDevice gpu, const VkDeviceCreateInfo *info,
                                         const VkAllocationCallbacks *memory, VkDevice *device)
{
    VkLayerDeviceCreateInfo *link = (VkLayerDeviceCreateInfo *)info->pNext;
    while (link && (link->sType != VK_STRUCTURE_TYPE_LOADER_DEVICE_CREATE_INFO ||
                    link->function != VK_LAYER_LINK_INFO))
        link = (VkLayerDeviceCreateInfo *)link->pNext;
    if (!link)
        return VK_ERROR_INITIALIZATION_FAILED;
    PFN_vkGetInstanceProcAddr instance_proc = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
    below.device_proc = link->u.pLayerInfo->pfnNextGetDeviceProcAddr;
    link->u.pLayerInfo = link->u.pLayerInfo->pNext;

    VkDeviceCreateInfo reduced = *info;
    const char **names = calloc(info->enabledExtensionCount + 1, sizeof *names);
    if (!names)
        return VK_ERROR_OUT_OF_HOST_MEMORY;
    reduced.enabledExtensionCount = 0;
    reduced.ppEnabledExtensionNames = names;
    for (uint32_t i = 0; i < info->enabledExtensionCount; i++)
        if (strcmp(info->ppEnabledExtensionNames[i], unwanted) != 0)
            names[reduced.enabledExtensionCount++] = info->ppEnabledExtensionNames[i];

    PFN_vkCreateDevice create =
        (PFN_vkCreateDevice)instance_proc(below.instance, "vkCreateDevice");
    VkResult result = create(gpu, &reduced, memory, device);
    free(names);
    return result;
}

static VkResult VKAPI_CALL create_semaphore(VkDevice device, const VkSemaphoreCreateInfo *info,
                                            const VkAllocationCallbacks *memory,
                                            VkSemaphore *semaphore)
{
    VkSemaphoreCreateInfo reduced = *info;
    VkBaseOutStructure *node = (VkBaseOutStructure *)&reduced, *removed = NULL;
    while (node->pNext && node->pNext->sType != VK_STRUCTURE_TYPE_EXPORT_SEMAPHORE_CREATE_INFO)
        node = node->pNext;
    if ((removed = node->pNext))
        node->pNext = removed->pNext;

    PFN_vkCreateSemaphore create =
        (PFN_vkCreateSemaphore)below.device_proc(device, "vkCreateSemaphore");
    VkResult result = create(device, &reduced, memory, semaphore);
    if (removed)
        node->pNext = removed; /* the chain is the caller's: leave it as it came */
    return result;
}

static PFN_vkVoidFunction VKAPI_CALL device_proc(VkDevice device, const char *name)
{
    if (strcmp(name, "vkGetDeviceProcAddr") == 0)
        return (PFN_vkVoidFunction)device_proc;
    if (strcmp(name, "vkCreateSemaphore") == 0)
        return (PFN_vkVoidFunction)create_semaphore;
    return below.device_proc(device, name);
}

static PFN_vkVoidFunction VKAPI_CALL instance_proc(VkInstance instance, const char *name)
{
    if (strcmp(name, "vkGetInstanceProcAddr") == 0)
        return (PFN_vkVoidFunction)instance_proc;
    if (strcmp(name, "vkGetDeviceProcAddr") == 0)
        return (PFN_vkVoidFunction)device_proc;
    if (strcmp(name, "vkCreateInstance") == 0)
        return (PFN_vkVoidFunction)create_instance;
    if (strcmp(name, "vkCreateDevice") == 0)
        return (PFN_vkVoidFunction)create_device;
    return below.instance_proc ? below.instance_proc(instance, name) : NULL;
}

EXPORT VkResult VKAPI_CALL vkNegotiateLoaderLayerInterfaceVersion(VkNegotiateLayerInterface *offer)
{
    if (offer->loaderLayerInterfaceVersion > 2)
        offer->loaderLayerInterfaceVersion = 2;
    offer->pfnGetInstanceProcAddr = instance_proc;
    offer->pfnGetDeviceProcAddr = device_proc;
    offer->pfnGetPhysicalDeviceProcAddr = NULL;
    return VK_SUCCESS;
}
